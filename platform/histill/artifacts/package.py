"""Put together what goes with a model: its exported formats, what describes them, and their checksums and signature."""

from collections.abc import Mapping, Sequence

from histill.artifacts.checksums import CHECKSUMS_NAME, hash_files, list_checksums
from histill.artifacts.formats.made import Export
from histill.artifacts.hub_metadata import ScoredTiles, write_front_matter
from histill.artifacts.interface import INTERFACE_NAME, describe_interface, read_preparation
from histill.artifacts.model_folder import CARD_NAME, WEIGHTS_NAME, ModelCard, TaughtBy
from histill.artifacts.readme import README_NAME, write_readme
from histill.artifacts.signature import SIGNATURE_NAME, sign_checksums
from histill.config.common import Storage
from histill.storage.control import json_bytes, read_bytes
from histill.storage.uris import join


def package_exports(
    exports: Sequence[Export],
    card: ModelCard,
    digest: str,
    own: Mapping[str, bytes],
    *,
    name: str,
    license: str | None,
    taught_by: Sequence[TaughtBy],
    figures: Mapping[str, float],
    scored: ScoredTiles,
    signing_key: str | None,
) -> dict[str, bytes]:
    """The files (path -> content): the formats, `interface.json`, `README.md` and the checksums of all.

    The checksums also have the model's `own` files, which are kept elsewhere, and are signed if there is a
    `signing_key`. `license` is that of the weights; `figures` are of the tiles `scored`, and may be empty.
    """
    contents = {path: data for each in exports for path, data in each.contents.items()} | read_preparation()
    listed = [each.listed for each in exports]
    told = describe_interface(card, digest, listed, license, taught_by, hash_files(contents))
    made = [each.format for each in listed if each.files]
    front = write_front_matter(card, name, license, made, figures, scored)
    scored_on = f"{scored.name} ({scored.digest[:12]}, {scored.split})"
    files = {
        **contents,
        INTERFACE_NAME: json_bytes(told),
        README_NAME: (front + write_readme(card, told, figures, scored_on)).encode(),
    }
    files[CHECKSUMS_NAME] = list_checksums({**files, **own})
    if signing_key is not None:
        files[SIGNATURE_NAME] = sign_checksums(files[CHECKSUMS_NAME], signing_key)
    return files


def read_own_files(model: str, storage: Storage) -> dict[str, bytes]:
    """The two files of the model folder `model`, by name."""
    return {name: read_bytes(join(model, name), storage) for name in (WEIGHTS_NAME, CARD_NAME)}
