# From the repository's root: docker build -f launchers/docker/cuda.Dockerfile -t vlm-lora:cuda .
#
# A development image, because DeepSpeed compiles its CPU optimizer (offloading) at first use. On several machines with a
# special network (EFA on AWS) take the provider's own image: --build-arg BASE=IMAGE, one with torch 2.6 or newer.
ARG BASE=pytorch/pytorch:2.8.0-cuda12.8-cudnn9-devel
FROM ${BASE}

WORKDIR /opt/vlm-lora
COPY pyproject.toml README.md LICENSE requirements-cuda.txt ./
COPY vlm_lora vlm_lora
COPY backends backends
RUN pip install --no-cache-dir -r requirements-cuda.txt
COPY launchers launchers
COPY examples examples

ENV PYTHONUNBUFFERED=1
CMD ["vlm-lora", "doctor"]
