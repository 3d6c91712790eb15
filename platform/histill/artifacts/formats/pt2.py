"""A torch.export archive, for `torch.export.load` alone.

The archive has room for pickled objects, which is why it is made on request only, and why histill never loads one: what
answers here is the program in memory, before it is saved.
"""

import io

import torch

from histill.artifacts.formats.made import Made
from histill.artifacts.formats.subject import Subject, quiet_exporters

PT2_NAME = "model.pt2"


def make_pt2(subject: Subject) -> Made:
    """The archive of the program, which answers in memory."""
    archive = io.BytesIO()
    with quiet_exporters():
        torch.export.save(subject.program, archive)
    return Made({PT2_NAME: archive.getvalue()}, subject.program.module())
