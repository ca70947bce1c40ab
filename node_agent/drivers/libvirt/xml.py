"""XML as libvirt prints it, read without what XML can be abused for: there is never a document type in it."""

from __future__ import annotations

from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from node_agent.drivers.libvirt.errors import HypervisorError

MAX_XML = 16 << 20


def parse(text: str, root: str) -> Element:
    """The element ``root``. HypervisorError for anything else, also for entities of its own."""
    if len(text) > MAX_XML or "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise HypervisorError(f"libvirt printed a <{root}> that is no plain XML.")
    try:
        element = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise HypervisorError(f"libvirt printed a <{root}> that is not well-formed: {error}.") from error
    if element.tag != root:
        raise HypervisorError(f"libvirt printed a <{element.tag[:40]}> instead of a <{root}>.")
    return element


def text_of(element: Element) -> str:
    return ElementTree.tostring(element, encoding="unicode")
