"""Load what is scored by its embeddings: a histill model, or an encoder as the Hugging Face hub has timm models."""

from histill.artifacts.check_places import is_timm_folder
from histill.artifacts.model_folder import ModelCard, check_like, load, resolve
from histill.config.common import Storage
from histill.config.common import Teacher as TeacherConfig
from histill.config.encoder import EncoderFacts, EncoderTeacher
from histill.errors import InputError
from histill.models.encoders import Encoder
from histill.models.transfer import Model
from histill.teachers.encoder_folder import read_config
from histill.teachers.teacher import find_licensed, load_teacher
from histill.teachers.timm_encoder import PooledNetwork, TimmEncoder
from histill.tiles.manifest import Header
from histill.version import __version__


def load_subject(
    uri: str, facts: EncoderFacts, header: Header, tiles: str, storage: Storage
) -> tuple[Model, ModelCard, str]:
    """The model at `uri` in evaluation mode, its card and its digest, for the tile set at `tiles`.

    A timm folder is read with `facts`, as a teacher is, and its card says what is known of it: how it sees these tiles,
    and its license. Raises InputError when the model cannot see the tiles, or `facts` are given of another model.
    """
    if is_timm_folder(uri, storage):
        return _load_timm(uri, facts, header, storage)
    if facts != EncoderFacts():
        raise InputError(
            f"encoder says how a timm folder is read, and {uri} is a histill model; leave encoder out.",
            code="option-not-applicable",
        )
    network, card, digest = load(resolve(uri, storage), storage)
    check_like(card, header, tiles)
    return network, card, digest


def _load_timm(uri: str, facts: EncoderFacts, header: Header, storage: Storage) -> tuple[Model, ModelCard, str]:
    config = TeacherConfig(encoder=EncoderTeacher(folder=uri, **dict(facts)))
    encoder = load_teacher(config, header.mpp, storage)
    assert isinstance(encoder, TimmEncoder)
    frame, name = encoder.frame, read_config(uri, storage).architecture
    card = ModelCard(
        kind="encoder",
        encoder=name,
        decoder_channels=(),
        classes=(),
        mean=frame.mean,
        std=frame.std,
        tile_px=header.tile_px,
        tile_mpp=header.mpp,
        size_px=encoder.sees(header.tile_px),
        tiles_digest="",
        train_cases=(),
        histill=__version__,
        width=encoder.width,
        taught_by=find_licensed(config, encoder, storage),
    )
    return Encoder(PooledNetwork(encoder), name, frame.mean, frame.std).eval(), card, encoder.digest
