# From the repository's root: docker build -f launchers/docker/gaudi.Dockerfile -t vlm-lora:gaudi .
#
# The default is the release that optimum-habana 1.21.2 was validated with. Release, build and torch must fit the driver on
# your machines (`hl-smi` shows it): --build-arg RELEASE=... --build-arg BUILD=... --build-arg TORCH=...
# Run with: docker run --runtime=habana -e HABANA_VISIBLE_DEVICES=all --cap-add=sys_nice --net=host --ipc=host ...
ARG RELEASE=1.24.0
ARG BUILD=1.24.0-1007
ARG TORCH=2.10.0
ARG OS=ubuntu22.04
FROM vault.habana.ai/gaudi-docker/${RELEASE}/${OS}/habanalabs/pytorch-installer-${TORCH}:${BUILD}

ARG RELEASE
WORKDIR /opt/vlm-lora
COPY pyproject.toml README.md LICENSE requirements-hpu.txt ./
COPY vlm_lora vlm_lora
COPY backends backends
RUN pip install --no-cache-dir -r requirements-hpu.txt \
    && pip install --no-cache-dir "git+https://github.com/HabanaAI/DeepSpeed.git@${RELEASE}"
COPY launchers launchers
COPY examples examples

ENV PT_HPU_LAZY_MODE=1 PYTHONUNBUFFERED=1
CMD ["vlm-lora", "doctor"]
