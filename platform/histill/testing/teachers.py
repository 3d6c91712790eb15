"""A check for teachers: run it on a teacher of your own."""

import torch

from histill.licenses import License
from histill.teachers.teacher import Teacher


def check_teacher(teacher: Teacher, tiles: torch.Tensor) -> None:
    """Check everything that histill relies on in `teacher`. Raises AssertionError with the violation.

    Args:
        tiles: tiles that the teacher is made for, uint8 [B, 3, S, S] with B > 1 and a side S that it takes.
    """
    side, outputs = tiles.shape[-1], teacher.outputs
    assert len(bytes.fromhex(teacher.digest)) == 32, f"the digest {teacher.digest!r} is not 64 hex digits"
    assert teacher.mpp is None or teacher.mpp > 0, f"its mpp is {teacher.mpp}"
    assert hasattr(teacher, "license"), "it has no license; None says that its terms are not on record"
    assert teacher.license is None or isinstance(teacher.license, License), f"its license is {teacher.license!r}"
    assert teacher.sees(side) > 0, f"it sees tiles of {side} px at {teacher.sees(side)} px"
    given = tiles.clone()
    logits = teacher.respond(tiles)
    assert torch.equal(tiles, given), "it changes the tiles that it is given"
    channels = outputs.width if outputs.kind == "encoder" else len(outputs.classes)
    expected = (len(tiles), channels, side, side) if outputs.dense else (len(tiles), channels)
    assert logits.shape == expected, f"it answers {tuple(logits.shape)}, and {expected} was expected"
    assert logits.dtype == torch.float32, f"it answers in {logits.dtype}"
    assert logits.isfinite().all(), "it answers nan or infinity"
    for index in range(len(tiles)):
        alone = teacher.respond(tiles[index : index + 1])[0]
        torch.testing.assert_close(
            alone, logits[index], atol=1e-4, rtol=0, msg=f"tile {index} has other logits alone than in a batch"
        )
    if teacher.features is None:
        return
    for layer, channels in teacher.features.layers.items():
        shape = teacher.features.map_shape(layer, side)
        assert shape[0] == channels, f"the map of {layer} has the shape {shape}, and {channels} channels were expected"
        _, maps = teacher.features.respond_with_maps(tiles, (layer,))
        assert maps[layer].shape == (len(tiles), *shape), f"the map of {layer} has the shape {tuple(maps[layer].shape)}"
