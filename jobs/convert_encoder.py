"""Write published weights of an encoder as the folder that teacher.encoder.folder takes.

Takes timm's, DINOv2's and transformers' names of tensors, and files of torch (.bin, .pt, .pth) as far as they hold
tensors and nothing that could run. Prints the architecture and the folder as one JSON line.

    python jobs/convert_encoder.py weights=uni/pytorch_model.bin output=s3://bucket/encoders/uni
    python jobs/convert_encoder.py weights=midnight/model.safetensors preset=midnight-12k output=encoders/midnight
"""

from histill.cli import Outcome, run_job
from histill.config.convert_encoder import ConvertConfig


def main(config: ConvertConfig) -> Outcome:
    """Convert the weights of `config`."""
    from histill.storage.control import probe
    from histill.teachers.convert_encoder import convert_encoder

    probe(config.output, config.storage)
    hub = convert_encoder(config)
    return Outcome({"folder": config.output, "architecture": hub.architecture, "model_args": hub.model_args})


if __name__ == "__main__":
    raise SystemExit(run_job(ConvertConfig, main))
