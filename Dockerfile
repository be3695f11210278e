# The library and launch/ with everything that they import, for a CPU, or for an NVIDIA GPU:
#
#   docker build -t jaxunlearn .
#   docker build -t jaxunlearn:cuda --build-arg EXTRA=cuda .
#   docker run --rm -v "$PWD/runs:/app/runs" jaxunlearn jaxunlearn.main --config=configs/quickstart.py
#
# JAX brings CUDA's libraries; the host has the driver and the NVIDIA container toolkit (--gpus=all).
FROM python:3.12-slim

ARG EXTRA=slurm,cpu
# For oneDNN, which the extra "cpu" brings.
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY setup.cfg setup.py pyproject.toml README.md LICENSE ./
COPY jaxunlearn jaxunlearn
COPY configs configs
COPY launch launch
RUN pip install --no-cache-dir -e ".[${EXTRA}]" \
    && useradd --create-home --uid 1000 user \
    && mkdir runs && chown user runs
USER user
ENTRYPOINT ["python", "-m"]
CMD ["jaxunlearn.main", "--config=configs/quickstart.py"]
