# The one image of cluster.yaml and deploy/rayjob.yaml, for heads and workers alike:
#   docker build -t registry.example.com/histill:0.1.0-ray2.60.0 .
#   docker push registry.example.com/histill:0.1.0-ray2.60.0
# The base has the Ray of constraints.txt and Python 3.11. --build-arg VARIANT=cpu leaves out CUDA's toolkit, some GB.
# Without a Docker engine, hadolint reads this file, and the first RUN can be tried in an empty Python 3.11 environment
# with pip's --dry-run.
ARG VARIANT=gpu
FROM rayproject/ray:2.60.0-py311-${VARIANT}

LABEL org.opencontainers.image.title="histill" \
      org.opencontainers.image.description="Distil small histology models on Ray" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"

# The base's user `ray`; as a number Kubernetes can tell that it is not root.
USER 1000
WORKDIR /home/ray/histill

# Gigabytes, made anew only when dependencies change. boto3 is for Ray's autoscaler on AWS: the base's own does not fit
# the botocore that s3fs asks for.
COPY --chown=1000:100 pyproject.toml constraints.txt ./
RUN python -c "import tomllib as t; print(*t.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
    > /tmp/dependencies.txt \
    && python -m pip install --no-cache-dir -c constraints.txt -r /tmp/dependencies.txt boto3 \
    && rm /tmp/dependencies.txt

# Not -e: what is installed must not vanish behind a volume, nor change with the folder. The last two lines are there to
# fail here and not in the first job: something of the base may not fit, or a library of the system be missing.
COPY --chown=1000:100 README.md ./
COPY --chown=1000:100 platform platform
COPY --chown=1000:100 jobs jobs
COPY --chown=1000:100 deploy/watch_spot.py deploy/
RUN python -m pip install --no-cache-dir --no-deps . \
    && python jobs/pretrain_student.py --help > /dev/null \
    && python -c "import boto3, cv2, mlflow, onnxruntime, openslide, ray.train, s3fs, timm, torchvision"
