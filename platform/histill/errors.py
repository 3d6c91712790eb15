"""Errors that a user can act on: one sentence naming the culprit, what was expected, and the next step, and a code.

`error_catalogue.md` explains each code; `HistillError.code` names the situation, not the place in the program.
"""

from typing import Any, Literal

ErrorCode = Literal[
    # the command line, calls from Python, and the configuration
    "command-line-wrong",
    "argument-wrong",
    "config-unreadable",
    "config-yaml",
    "config-unknown-key",
    "config-missing-key",
    "config-wrong-value",
    "config-unquoted",
    "config-conflict",
    "config-credentials",
    "option-not-applicable",
    # places of files
    "storage-denied",
    "storage-unreachable",
    "storage-endpoint",
    "storage-profile",
    "storage-unusable",
    "bucket-missing",
    "disk-full",
    "package-missing",
    # slides, images and their index
    "source-missing",
    "slide-unreadable",
    "slide-duplicated",
    "annotations-unreadable",
    "annotations-class",
    "image-unreadable",
    "mask-values",
    "too-many-unreadable",
    "no-tiles",
    "output-taken",
    "index-malformed",
    "index-column-missing",
    "index-wrong-value",
    "index-duplicate",
    "mpp-missing",
    "mpp-contradicting",
    "resolution-too-fine",
    # tile sets and their use
    "tiles-missing",
    "tiles-damaged",
    "tiles-undecodable",
    "split-empty",
    "label-missing",
    "label-unknown",
    "mask-missing",
    "column-missing",
    "centers-unusable",
    "predictions-damaged",
    # models and their weights
    "model-missing",
    "weights-missing",
    "weights-unreadable",
    "weights-pickled",
    "weights-do-not-fit",
    "encoder-unknown",
    "encoder-unusable",
    "encoder-pooling",
    "layer-unknown",
    "maps-missing",
    "onnx-unusable",
    "onnx-weights-outside",
    "engine-unusable",
    "output-not-finite",
    "size-does-not-fit",
    "resolution-differs",
    "models-not-comparable",
    # teachers and their responses
    "teacher-wrong-kind",
    "responses-missing",
    "responses-needed",
    "responses-of-other-teacher",
    "responses-of-other-tiles",
    "responses-of-other-views",
    "features-missing",
    "features-off-grid",
    "features-unreadable",
    # runs and sweeps
    "run-finished",
    "run-in-use",
    "run-of-other-config",
    "input-changed",
    "other-version",
    "loss-not-finite",
    "gpu-missing",
    "cluster-too-small",
    "sweep-state-unusable",
    "sweep-without-result",
    # tracking and the registry
    "tracking-unreachable",
    "tracking-refused",
    "experiment-deleted",
    "version-missing",
    "version-changed",
    "file-changed",
    "export-differs",
    "signature-wrong",
    "key-unusable",
    "champion-changed",
    "copy-failed",
    "model-local-only",
    # Ray and this machine
    "ray-unreachable",
    "ray-token",
    "ray-versions",
    "ray-not-started",
    "node-silent",
    "node-not-drained",
    "demo-failed",
    "testbed-failed",
]


class HistillError(Exception):
    """A job failed; the message is meant for its user. Jobs exit with status 1."""

    code: ErrorCode

    def __init__(self, message: str, code: ErrorCode) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with the code, which an exception's `args` lack: errors come back from Ray's processes."""
        return type(self), (str(self), self.code)


class InputError(HistillError):
    """The user's input (config, credentials, tiles, models) is at fault. Jobs exit with status 2."""


class UnavailableError(InputError):
    """A server does not answer, which may be temporary."""


def format_error(error: HistillError) -> str:
    """The line that a job prints for `error`: its sentence, then its code."""
    return f"error: {error} [{error.code}]"
