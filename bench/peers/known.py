"""The peers there are, by the names that a user gives them, and the checkouts that a user gives for them."""

import os
from collections.abc import Iterable
from pathlib import Path

from bench.peers import build_nanogpt, llmc, nanogpt
from bench.peers.entrant import Peer
from optim_ladder import unknown

PEERS: dict[str, Peer] = {"nanogpt": nanogpt.PEER, "build-nanogpt": build_nanogpt.PEER, "llm.c": llmc.PEER}


def checkouts(arguments: Iterable[str]) -> dict[str, Path]:
    """What ``NAME=DIR`` arguments say, in the order they are given.

    Raises:
        ValueError: one is not of that form, names no peer, no folder, or a peer twice.
    """
    found: dict[str, Path] = {}
    for argument in arguments:
        name, equals, folder = argument.partition("=")
        folder = os.path.expanduser(folder)  # which not every shell does behind a "="
        if not equals or not folder:
            raise ValueError(f"{argument!r} does not say where a peer is; write NAME=DIR, e.g. nanogpt=../nanoGPT")
        if name not in PEERS:
            raise unknown("peer", name, PEERS)
        if name in found:
            raise ValueError(f"{name} is given twice, {found[name]} and {folder}; give one of them")
        if not Path(folder).is_dir():
            raise ValueError(f"{name}={folder}: there is no such folder; clone {PEERS[name].source} and give its place")
        found[name] = Path(folder)
    return found
