"""Open-loop loads of each target in turn, and the search for the highest rate at which an objective holds.

Importing this patches the process for gevent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from loadtests.capacity import Capacity, Probe, find_capacity
from loadtests.crew import Crew, Sending
from loadtests.figures import figures, lateness
from loadtests.plan import Search, Traffic
from loadtests.report import CLIENT_BUSY, sends_late
from loadtests.samples import Samples
from loadtests.tally import Load, Measurement
from loadtests.targets import Target
from loadtests.terms import first_broken

# A percentile needs answers: a probe lasts until it has had this many, within limits.
_PROBE_REQUESTS = 400
_PROBE_S = (1.0, 10.0)


def asked_of(target: Target, tiers: Sequence[Target]) -> list[Target]:
    """The targets that a load is made of: of a mix, all tiers."""
    return list(tiers) if target.kind == "mix" else [target]


def load_in_turn(
    crew: Crew,
    traffic: Traffic,
    measured: Sequence[Measurement],
    tiers: Sequence[Target],
    samples: Samples,
    sending: Sending,
    search: Search | None,
    progress: Callable[[str], None],
) -> list[Measurement]:
    """Loads each target; with a search, finds its highest rate too.

    Args:
        crew: Sends.
        traffic: What.
        measured: The targets, with their pass over the test split.
        tiers: The tiers that a mix is made of.
        samples: The rows to send.
        sending: How.
        search: None when the highest rate is not asked for.
        progress: Told of each step.
    """
    found = []
    for step, one in enumerate(measured, 1):
        asked = asked_of(one.target, tiers)
        schedule = traffic.schedule(asked, samples.rows)
        progress(
            f"[{step}/{len(measured)}] {one.target.label}: {len(schedule.times)} requests in "
            f"{schedule.seconds:g} s ({traffic.shape})"
        )
        load = crew.play(schedule, asked, sending)
        one = replace(one, load=load)
        if search is not None:
            one = replace(
                one, capacity=_search(crew, traffic, one, asked, samples, sending, search, progress)
            )
        found.append(one)
    return found


def _search(
    crew: Crew,
    traffic: Traffic,
    measured: Measurement,
    asked: list[Target],
    samples: Samples,
    sending: Sending,
    search: Search,
    progress: Callable[[str], None],
) -> Capacity:
    def probe(rate: float) -> Probe:
        seconds = min(max(_PROBE_REQUESTS / rate, _PROBE_S[0]), _PROBE_S[1])
        steady = replace(traffic, shape="poisson", rate=rate, seconds=seconds, trace=None)
        load = crew.play(steady.schedule(asked, samples.rows), asked, sending)
        made = _outcome(rate, load, search)
        progress(f"    {measured.target.label}: {rate:.0f}/s {made.outcome} {made.why}".rstrip())
        return made

    return find_capacity(probe, traffic.rate, search.most)


def _outcome(rate: float, load: Load, search: Search) -> Probe:
    rows = load.tally.rows
    known = figures(rows, load, search.price, whole=True)
    broken = first_broken(search.objective, known)
    if broken is None:
        return Probe(rate, "held")
    if load.client_cpu >= CLIENT_BUSY or sends_late(lateness(rows), known["p99"]):
        return Probe(rate, "client", broken)
    return Probe(rate, "broken", broken)
