"""Explain OpenSlide's errors to the slide's owner: a slide that it does not support is not damaged."""

import re


def explain_error(said: str) -> str:
    """Explain an error of OpenSlide, as the rest of a sentence that begins with the slide's name."""
    codec = re.search(r"Unsupported TIFF compression: (\d+)", said)
    if codec:
        return (
            f"has tiles compressed as {_codec_name(int(codec[1]))}, which OpenSlide does not decode; convert it to a "
            "pyramidal TIFF with JPEG tiles."
        )
    count = re.search(r"Invalid tile byte count.* Expected (\d+), got (\d+)", said)
    if count and int(count[2]) == -(-int(count[1]) // 1024) * 1024:  # libtiff 4.7 rejects such sound files
        return (
            "has uncompressed tiles whose bytes are no multiple of 1,024, which OpenSlide does not read; convert it "
            "to a pyramidal TIFF with JPEG tiles."
        )
    if re.search(r"unsupported (?!marker)|not supported|can ?not handle|required TIFF tag", said, re.IGNORECASE):
        return f"holds what OpenSlide does not read ({said}); convert it to a pyramidal TIFF with JPEG tiles."
    if "SOP instance" in said:
        return f"lacks some of its DICOM files ({said}); copy all of them into one folder."
    return f"is damaged ({said}); replace it."


def _codec_name(number: int) -> str:
    import tifffile

    try:
        return f"{tifffile.COMPRESSION(number).name} (TIFF compression {number})"
    except ValueError:
        return f"TIFF compression {number}"
