"""XMP: what says that a picture was made by a model, and holds the program's JSON where a format has no text chunks.

Other people's packets are read by expat, which is told to stop at an entity's declaration: nothing is expanded.

Reference: `reference/scale-and-ux.md` section 9; XMP specification part 1, section 7; IPTC Photo Metadata, Digital Source
Type, and its vocabulary https://cv.iptc.org/newscodes/digitalsourcetype/.
"""

from __future__ import annotations

from enum import StrEnum
from xml.parsers import expat
from xml.sax.saxutils import escape

_VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_OWN = "urn:max-zimage:ns/1.0/"
_SD_CPP = "https://github.com/leejet/stable-diffusion.cpp/ns/1.0/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
OWN_PARAMETERS = f"{_OWN} parameters"
OTHER_PARAMETERS = f"{_SD_CPP} parameters"
"""Namespace and name of the properties that hold parameters: the program's JSON, and stable-diffusion.cpp's text."""


class Source(StrEnum):
    """How a picture came to be, in IPTC's words."""

    MODEL = "trainedAlgorithmicMedia"
    """By a model alone."""
    COMPOSITE = "compositeWithTrainedAlgorithmicMedia"
    """By a model, from another picture."""


def packet(source: Source, parameters: str = "") -> bytes:
    """An XMP packet.

    Args:
        source: How the picture came to be.
        parameters: JSON to hold; empty for none.
    """
    # XML has no way to say these two; JSON has.
    safe = parameters.replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")
    held = f"<max_zimage:parameters>{escape(safe)}</max_zimage:parameters>" if parameters else ""
    own = f' xmlns:max_zimage="{_OWN}"' if parameters else ""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}">'
        f'<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="{_IPTC}"{own}>'
        f"<Iptc4xmpExt:DigitalSourceType>{_VOCABULARY}{source}</Iptc4xmpExt:DigitalSourceType>{held}"
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
