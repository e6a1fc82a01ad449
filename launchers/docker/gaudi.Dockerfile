# From the repository's root: docker build -f launchers/docker/gaudi.Dockerfile -t vlm-lora:gaudi .
#
# By transformers 5's own support; --build-arg REQUIREMENTS=requirements-hpu-optimum.txt takes optimum-habana (unsupported
# since 2026-10-31, validated with the release below). docs/gaudi.md compares the two roads.
# Release, build and torch must fit the driver on your machines (`hl-smi` shows it): --build-arg RELEASE=...
# --build-arg BUILD=... --build-arg TORCH=...
# Run with: docker run --runtime=habana -e HABANA_VISIBLE_DEVICES=all --cap-add=sys_nice --net=host --ipc=host ...
ARG RELEASE=1.24.0
ARG BUILD=1.24.0-1007
ARG TORCH=2.10.0
ARG OS=ubuntu22.04
FROM vault.habana.ai/gaudi-docker/${RELEASE}/${OS}/habanalabs/pytorch-installer-${TORCH}:${BUILD}

ARG RELEASE
ARG REQUIREMENTS=requirements-hpu.txt
WORKDIR /opt/vlm-lora
COPY pyproject.toml README.md LICENSE requirements-hpu.txt requirements-hpu-optimum.txt ./
COPY vlm_lora vlm_lora
COPY backends backends
RUN pip install --no-cache-dir -r "${REQUIREMENTS}" \
    && pip install --no-cache-dir "git+https://github.com/HabanaAI/DeepSpeed.git@${RELEASE}"
COPY launchers launchers
COPY examples examples

# PT_HPU_LAZY_MODE is not set: each road has its own default, and vlm-lora sets it before torch is imported.
ENV PYTHONUNBUFFERED=1
CMD ["vlm-lora", "doctor"]
