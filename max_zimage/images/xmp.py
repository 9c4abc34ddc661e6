"""XMP: what says that a picture was made by a model, and holds the program's JSON where a format has no text chunks.

A JPEG's segments hold 64 KiB each: a packet that is larger is cut in two as the standard has it, of which the second
goes over several segments. Other people's packets are read by expat, which is told to stop at an entity's declaration:
nothing is expanded.

Reference: `reference/scale-and-ux.md` section 9; XMP specification part 1, section 7, and part 3, section 1.1.3; IPTC
Photo Metadata, Digital Source Type, and its vocabulary https://cv.iptc.org/newscodes/digitalsourcetype/.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from enum import StrEnum
from xml.parsers import expat
from xml.sax.saxutils import escape

_VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_OWN = "urn:max-zimage:ns/1.0/"
_SD_CPP = "https://github.com/leejet/stable-diffusion.cpp/ns/1.0/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_NOTE = "http://ns.adobe.com/xmp/note/"
_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"
_GUID_BYTES, _PART_BYTES = 32, 65_000
MAX_PACKET = 65_000
"""Bytes of a packet that one segment of a JPEG holds."""
OWN_PARAMETERS = f"{_OWN} parameters"
OTHER_PARAMETERS = f"{_SD_CPP} parameters"
"""Namespace and name of the properties that hold parameters: the program's JSON, and stable-diffusion.cpp's text."""


class Source(StrEnum):
    """How a picture came to be, in IPTC's words."""

    MODEL = "trainedAlgorithmicMedia"
    """By a model alone."""
    COMPOSITE = "compositeWithTrainedAlgorithmicMedia"
    """By a model, from another picture."""


def source_of(image: object) -> Source:
    """How a picture came to be that was drawn from an image, or from None."""
    return Source.MODEL if image is None else Source.COMPOSITE


def packet(source: Source, parameters: str = "") -> bytes:
    """An XMP packet.

    Args:
        source: How the picture came to be.
        parameters: JSON to hold; empty for none.
    """
    return _packet(_source(source) + _held(parameters))


def packet_in_parts(source: Source, parameters: str) -> tuple[bytes, bytes]:
    """An XMP packet for a JPEG, where one segment does not hold it.

    Returns:
        The packet, and the JPEG segments of the one that it names.
    """
    extended = _packet(_held(parameters))
    digest = hashlib.md5(extended, usedforsecurity=False).hexdigest().upper()
    segments = b""
    for offset in range(0, len(extended), _PART_BYTES):
        place = len(extended).to_bytes(4, "big") + offset.to_bytes(4, "big")
        part = _EXTENSION + digest.encode() + place + extended[offset : offset + _PART_BYTES]
        segments += b"\xff\xe1" + (len(part) + 2).to_bytes(2, "big") + part
    named = f'<xmpNote:HasExtendedXMP xmlns:xmpNote="{_NOTE}">{digest}</xmpNote:HasExtendedXMP>'
    return _packet(_source(source) + named), segments


def properties_of_parts(content: bytes, segments: Iterable[bytes]) -> dict[str, str]:
    """`properties` of a JPEG's packet, and of the one that it names, where all of that is there.

    Args:
        content: The packet.
        segments: What the picture's APP1 segments hold.
    """
    found = properties(content)
    digest = found.get(f"{_NOTE} HasExtendedXMP", "").encode()
    parts = {}
    for segment in segments:
        if digest and segment.startswith(_EXTENSION + digest):
            rest = segment[len(_EXTENSION) + _GUID_BYTES :]
            parts[int.from_bytes(rest[4:8], "big")] = rest[8:]
    extended = b"".join(parts[offset] for offset in sorted(parts))
    if not parts or hashlib.md5(extended, usedforsecurity=False).hexdigest().upper().encode() != digest:
        return found
    return found | properties(extended)


def _source(source: Source) -> str:
    name = "Iptc4xmpExt:DigitalSourceType"
    return f'<{name} xmlns:Iptc4xmpExt="{_IPTC}">{_VOCABULARY}{source}</{name}>'


def _held(parameters: str) -> str:
    # XML has no way to say these two; JSON has.
    safe = escape(parameters.replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff"))
    name = "max_zimage:parameters"
    return f'<{name} xmlns:max_zimage="{_OWN}">{safe}</{name}>' if parameters else ""


def _packet(said: str) -> bytes:
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}"><rdf:Description rdf:about="">{said}'
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


def properties(content: bytes) -> dict[str, str]:
    """The simple properties of a packet, by namespace, a space and name, whether elements or attributes.

    Damaged packets, and those that declare entities, have none.
    """
    found: dict[str, str] = {}
    parser = expat.ParserCreate(namespace_separator=" ")
    parts: list[str] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        found.update(attributes)
        parts.clear()

    def end(name: str) -> None:
        if text := "".join(parts):
            found.setdefault(name, text)
        parts.clear()

    def refuse(*_: object) -> None:
        raise expat.ExpatError("entities are not read")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = parts.append
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(content.rstrip(b"\0 \n"), True)
    except expat.ExpatError:
        return {}
    return found
