"""The metadata of a store: its generations, which one is current, and who uses which; and their form as JSON.

A process that writes or reads a generation for longer has a lease of it, which it renews. A generation with a lease is
not pruned. A lease ends when its process gives it up; when the process is found to have ended, on the machine on which
it ran; and otherwise LEASE_S after it was last renewed.

A number is given to one generation only, so that a writer which was thought to be gone cannot write into another one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

from easyrec_mm import __version__
from easyrec_mm.errors import StoreError
from easyrec_mm.files.processes import may_run

VectorDtype = Literal["float32", "float16"]
# How long a lease lasts after it was renewed, and after which time it is renewed, seconds.
LEASE_S, RENEW_S = 300, 60


@dataclass(frozen=True)
class Generation:
    """The properties of a generation, when it was begun and completed (seconds since 1970, 0: not yet), and the version
    of easyrec_mm that began it ("": one that did not say).
    """

    number: int
    fingerprint: str
    width: int
    dtype: VectorDtype
    begun_s: int
    completed_s: int = 0
    version: str = ""

    def is_same(self, other: Generation | None) -> bool:
        """Return whether another one with this number is this generation, and not that of a store in its place."""
        return other is not None and (self.fingerprint, self.begun_s) == (other.fingerprint, other.begun_s)


class Tasks(NamedTuple):
    """The number of tasks that write a generation, and a description of what they divide, the same for all of them."""

    num: int
    work: str


@dataclass(frozen=True)
class Use:
    """Who uses a generation: leases of writers and readers, name -> end in seconds since 1970; which of how many shares
    have been written, counted from 1; and, if tasks write the shares, a description of the work that they divide.
    """

    writers: Mapping[str, int] = field(default_factory=dict)
    readers: Mapping[str, int] = field(default_factory=dict)
    num_shares: int = 0
    written_shares: tuple[int, ...] = ()
    work: str = ""


@dataclass(frozen=True)
class Meta:
    """The metadata of a store.

    current      number of the current generation; 0: none yet
    generations  by number
    uses         who uses a generation, by its number
    last         the largest number that a generation has ever had
    removed      numbers of generations whose records are being removed
    """

    current: int
    generations: Mapping[int, Generation]
    uses: Mapping[int, Use] = field(default_factory=dict)
    last: int = 0
    removed: tuple[int, ...] = ()

    @property
    def current_generation(self) -> Generation | None:
        """The current generation, None if there is none yet."""
        return self.generations.get(self.current)

    def has(self, generation: Generation) -> bool:
        """Return whether a generation is still there."""
        return generation.is_same(self.generations.get(generation.number))

    def of_tower(self, fingerprint: str) -> Generation | None:
        """Return the generation of a fingerprint: the current one, or else the newest; None if there is none."""
        same = [g for g in self.generations.values() if g.fingerprint == fingerprint]
        return max(same, key=lambda g: (g.number == self.current, g.number), default=None)

    def use(self, number: int) -> Use:
        """Return who uses a generation."""
        return self.uses.get(number, Use())

    def with_new(self, fingerprint: str, width: int, dtype: VectorDtype, now_s: int) -> tuple[Meta, Generation]:
        """Add a generation; return it as well."""
        number = max(self.last, *self.generations, *self.removed, 0) + 1
        generation = Generation(number, fingerprint, width, dtype, now_s, version=__version__)
        return replace(self, last=number, generations={**self.generations, number: generation}), generation

    def with_use(self, number: int, use: Use) -> Meta:
        """Replace who uses a generation."""
        return replace(self, uses={**self.uses, number: use})

    def with_writer(self, number: int, writer: str, until_s: int) -> Meta:
        """Add or renew a writer's lease."""
        use = self.use(number)
        return self.with_use(number, replace(use, writers={**use.writers, writer: until_s}))

    def with_reader(self, number: int, reader: str, until_s: int) -> Meta:
        """Add or renew a reader's lease."""
        use = self.use(number)
        return self.with_use(number, replace(use, readers={**use.readers, reader: until_s}))

    def without_leases(self, name: str, numbers: Collection[int]) -> Meta:
        """Remove the leases of a process on generations."""
        uses = {
            number: replace(use, writers=_without(use.writers, name), readers=_without(use.readers, name))
            if number in numbers
            else use
            for number, use in self.uses.items()
        }
        return replace(self, uses=uses)

    def divided(self, number: int, tasks: Tasks, now_s: int) -> Meta:
        """Record how many tasks write a generation, and the work that they divide.

        Raises:
          StoreError: if others are writing it, or have written a part of it, by another division.
        """
        use = self.use(number)
        if self.generations[number].completed_s or (use.num_shares, use.work) == tasks:
            return self
        if use.num_shares and (use.written_shares or live(use.writers, now_s)):
            raise StoreError(
                f"--task_num {tasks.num}: divides {tasks.work}, but another task of generation {number} divides "
                f"{use.work or 'another input'} among {use.num_shares}; start all tasks with the same --task_num and "
                "--input, or remove the unfinished generation with store prune"
            )
        return self.with_use(number, replace(use, num_shares=tasks.num, written_shares=(), work=tasks.work))

    def completed(self, generation: Generation, writer: str, share: tuple[int, int] | None, now_s: int) -> Meta:
        """Record that a writer is through, and make the generation current, unless `waits_for` names a reason.

        Raises:
          StoreError: if other shares of this generation were one of another number.
        """
        meta = self.without_leases(writer, [generation.number])
        use = meta.use(generation.number)
        if share is not None:
            part, number = share
            if use.num_shares not in (0, number):
                raise StoreError(
                    f"share {part}/{number}: another share of generation {generation.number} was one of "
                    f"{use.num_shares}; give the same number for all"
                )
            written = tuple(sorted({*use.written_shares, part}))
            use = replace(use, num_shares=number, written_shares=written)
            meta = meta.with_use(generation.number, use)
        if meta.waits_for(generation.number, now_s):
            return meta
        done = replace(meta.generations[generation.number], completed_s=now_s)
        meta = meta.with_use(generation.number, replace(use, num_shares=0, written_shares=(), work=""))
        return replace(meta, current=done.number, generations={**meta.generations, done.number: done})

    def waits_for(self, number: int, now_s: int) -> str:
        """Return what is missing until a generation that is not complete can become current; "" if nothing is."""
        use = self.use(number)
        if self.generations[number].completed_s:
            return ""
        missing = sorted(set(range(1, use.num_shares + 1)).difference(use.written_shares))
        wait = f"{'has' if len(missing) == 1 else 'have'} not been written yet"
        if missing and use.work:
            tasks = ", ".join(str(part - 1) for part in missing)
            return f"task_index {tasks} of task_num {use.num_shares} {wait}"
        if missing:
            return f"share {', '.join(map(str, missing))} of {use.num_shares} {wait}"
        if writers := live(use.writers, now_s):
            return f"another run is writing to it ({', '.join(writers)})"
        return ""

    def users_of(self, number: int, now_s: int) -> str:
        """Return who uses a generation that is not current; "" if nobody does."""
        use = self.use(number)
        if live(use.writers, now_s):
            return "is being written"
        return "is being read" if live(use.readers, now_s) else ""

    def without(self, numbers: Collection[int]) -> Meta:
        """Remove generations from the list; their records remain to be removed."""
        generations = {number: g for number, g in self.generations.items() if number not in numbers}
        return replace(self, generations=generations, removed=tuple(sorted({*self.removed, *numbers})))


def live(leases: Mapping[str, int], now_s: int) -> list[str]:
    """Return the names of the leases that have not ended."""
    return [name for name, until_s in leases.items() if until_s > now_s and may_run(name.partition(" ")[0])]


def _without(leases: Mapping[str, int], name: str) -> dict[str, int]:
    return {holder: until_s for holder, until_s in leases.items() if holder != name}


def meta_to_text(meta: Meta, now_s: int) -> str:
    """Return metadata as JSON; leases that have ended are left out."""
    uses = {}
    for number, use in meta.uses.items():
        leases = {
            kind: {name: until_s for name, until_s in held.items() if until_s > now_s}
            for kind, held in (("writers", use.writers), ("readers", use.readers))
        }
        values = asdict(use) | leases
        if not use.work:
            del values["work"]  # which versions before this one do not read
        if number in meta.generations and any(values.values()):
            uses[number] = values
    generations = [asdict(generation) for generation in meta.generations.values()]
    # Beside the generations, in which earlier versions read no further value.
    versions = {generation["number"]: generation.pop("version") for generation in generations}
    values = {"format": 1, "current": meta.current, "generations": generations, "versions": versions}
    return json.dumps(values | {"uses": uses, "last": meta.last, "removed": meta.removed})


def parse_meta(text: bytes | str | None, uri: str) -> Meta:
    """Parse a store's metadata from JSON; None means a store without generations.

    Raises:
      StoreError: if the text is not the metadata of a store.
    """
    if text is None:
        return Meta(0, {})
    try:
        values = json.loads(text)
        if values["format"] != 1:
            raise ValueError(f"format {values['format']}")
        versions = values.get("versions", {})
        generations = [Generation(**g, version=versions.get(str(g["number"]), "")) for g in values["generations"]]
        return Meta(
            int(values["current"]),
            {generation.number: generation for generation in generations},
            {int(number): _use(use) for number, use in values.get("uses", {}).items()},
            int(values.get("last", 0)),
            tuple(values.get("removed", ())),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{uri}: is not a store of easyrec_mm ({error}); choose another store") from error


def _use(values: dict[str, Any]) -> Use:
    return Use(**{**values, "written_shares": tuple(values["written_shares"])})


def require_generation(meta: Meta, requested: Generation | None, uri: str) -> Generation:
    """Return the requested generation as the store has it now, by default the current one.

    Raises:
      StoreError: if the generation is gone, or no generation is complete.
    """
    if requested is not None:
        if not meta.has(requested):
            raise StoreError(f"{uri}: generation {requested.number} no longer exists; load the current one")
        return meta.generations[requested.number]
    current = meta.current_generation
    if current is None:
        raise StoreError(
            f"{uri}: holds no complete generation of vectors; let the command "
            "that writes it (embed or store load) finish"
        )
    return current
