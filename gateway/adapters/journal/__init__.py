"""The journal is one worker's own durable note of its attempts, in files that survive whatever the worker does not.

A folder per worker, ``<data dir>/journal/<journal id>/``, holds numbered segments of checksummed frames and a ``lock``
file whose flock says that the writer lives. ``segments`` knows the bytes, ``writer`` puts them on the disk, ``reader``
takes them off it, ``folders`` tells the living from the dead, ``recovery`` settles what a killed worker left open.
"""

from gateway.adapters.journal.folders import ClaimedJournal, JournalFolder, claim, journal_id, journals
from gateway.adapters.journal.reader import SegmentReader
from gateway.adapters.journal.recovery import Recovery, recover
from gateway.adapters.journal.segments import Frame, JournalPosition, Syscalls, decode, encode_frame
from gateway.adapters.journal.writer import JournalWriter

__all__ = [
    "ClaimedJournal",
    "Frame",
    "JournalFolder",
    "JournalPosition",
    "JournalWriter",
    "Recovery",
    "SegmentReader",
    "Syscalls",
    "claim",
    "decode",
    "encode_frame",
    "journal_id",
    "journals",
    "recover",
]
