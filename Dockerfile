# The trainer's container, on NVIDIA's PyTorch image: its torch, Transformer Engine and apex stay as they are.
#
#   docker build -t irpo-nemo .
#   docker run --gpus all -v $PWD:/workspace irpo-nemo irpo run CONFIG
#
# 26.06 is the image that Megatron-core 0.19's own tests use (Python 3.12).
ARG BASE=nvcr.io/nvidia/pytorch:26.06-py3
FROM ${BASE}

# The image pins every package it brings through PIP_CONSTRAINT, which no NeMo toolkit can satisfy. Instead, keep exactly what must not move.
ENV PIP_CONSTRAINT=""
COPY pyproject.toml README.md LICENSE /opt/irpo-nemo/
COPY conf /opt/irpo-nemo/conf
COPY irpo_nemo /opt/irpo-nemo/irpo_nemo
RUN pip list --format=freeze | grep -iE '^(torch|torchvision|triton|transformer[-_]engine.*|apex|flash[-_]attn|numpy)==' > /tmp/image.txt \
    && pip install --no-cache-dir -c /tmp/image.txt "/opt/irpo-nemo[train,report]" "megatron-core==0.19.2"
WORKDIR /workspace
