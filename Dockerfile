# Two images from one file: their torch differs, so they share no process and meet in files on a shared file system.
#
#   docker build --target trainer -t irpo-nemo:trainer .     every stage: NVIDIA's PyTorch, Transformer Engine and apex stay as they are
#   docker build --target sampler -t irpo-nemo:sampler .     stage sample with TensorRT-LLM 1.2, as NVIDIA ships it
#   docker run --gpus all --ipc=host -v $PWD:/workspace irpo-nemo:trainer irpo doctor
#
# 26.06 is the image that Megatron-core 0.19's own tests use (Python 3.12). Both targets are written from what NVIDIA and its users say of
# the images; neither has been built yet.
ARG TRAINER_BASE=nvcr.io/nvidia/pytorch:26.06-py3
ARG SAMPLER_BASE=nvcr.io/nvidia/tensorrt-llm/release:1.2.1

FROM ${TRAINER_BASE} AS trainer
# The image pins every package it brings through PIP_CONSTRAINT, which no NeMo toolkit can satisfy. Instead, what must not move is pinned
# here, and the build fails if it moved all the same.
ENV PIP_CONSTRAINT="" PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
WORKDIR /opt/irpo-nemo
COPY pyproject.toml README.md LICENSE ./
COPY conf conf
COPY slurm slurm
COPY irpo_nemo irpo_nemo
RUN kept() { pip list --format=freeze | grep -iE '^(torch|torchvision|(pytorch[-_])?triton|transformer[-_]engine.*|apex|flash[-_]attn|numpy)=='; } \
    && kept > /tmp/kept.txt \
    && pip install -c /tmp/kept.txt ".[train,report,data]" "megatron-core==0.19.2" \
    && kept | diff /tmp/kept.txt -
WORKDIR /workspace

FROM ${SAMPLER_BASE} AS sampler
# An engine's image: TensorRT-LLM's packages stay, and the package comes with its own few. No Megatron, no NeMo. Start programs through
# bash, which sets the library path there: bash -c "irpo stage sample CONFIG iteration=0".
ENV PIP_CONSTRAINT="" PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
WORKDIR /opt/irpo-nemo
COPY pyproject.toml README.md LICENSE ./
COPY conf conf
COPY slurm slurm
COPY irpo_nemo irpo_nemo
RUN kept() { pip list --format=freeze | grep -iE '^(torch|torchvision|(pytorch[-_])?triton|tensorrt.*|transformers|tokenizers|flashinfer.*|numpy|mpi4py)=='; } \
    && kept > /tmp/kept.txt \
    && pip install -c /tmp/kept.txt ".[data]" \
    && kept | diff /tmp/kept.txt -
WORKDIR /workspace
