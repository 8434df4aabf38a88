"""Records by hand, shared by the tests of the report."""

from dataclasses import replace

from debiasbench.records import (
    DataFacts,
    Failure,
    Provenance,
    Record,
    Result,
    Seconds,
    SplitFacts,
    record_path,
    write_record,
)

PROVENANCE = Provenance(
    finished="2026-11-23T00:00:00+00:00",
    seconds=Seconds(total=100.0, evaluation=3.0, stages=(40.0, 50.0), calls={"each 3": 5.0}),
    versions={"protocol": 1, "debiasbench": "0.1.0", "torch": "2.11"},
    device="cpu (x86_64)",
    peak_memory_mib=100,
)
SPLITS = {name: SplitFacts(n=100) for name in ("train", "valid", "test")}


def made_record(cell, epochs, selection, *, data=None, provenance=None, **result):
    """A finished record: `data`, `provenance` and the rest are what differs from the usual."""
    facts = replace(DataFacts(fingerprint=cell.dataset_title, official=True, splits=SPLITS), **(data or {}))
    outcome = Result(facts, selection, tuple(epochs), **result)
    return Record(cell.hash, cell, replace(PROVENANCE, **(provenance or {})), outcome)


def failed_record(cell, *, type="RuntimeError", message="it did not work", traceback="Traceback ...", **provenance):
    """A record without a result."""
    return Record(cell.hash, cell, replace(PROVENANCE, **provenance), failure=Failure(type, message, traceback))


def changed(record, **result):
    """The record with another result in these fields."""
    return replace(record, result=replace(record.result, **result))


def stored(folder, record, arrays=None):
    """Where the record now lies in a results folder."""
    path = record_path(folder, record.cell)
    write_record(path, record, arrays)
    return path
