"""Slots against a reference that keeps all that ever happened, in an order made by hypothesis."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pipezoo_core.lora import LoRASlots

NAMES = st.sampled_from("abcde")
REQUESTS = st.sampled_from([f"request {i}" for i in range(6)])


class SlotsMachine(RuleBasedStateMachine):
    """The reference: who is in, when each was last used, and which requests hold it."""

    def __init__(self):
        super().__init__()
        self.slots = LoRASlots(3)
        self.time = 0
        self.last_used = {}
        self.held = {}
        self.places = {}

    def use(self, name):
        self.time += 1
        self.last_used[name] = self.time

    @rule(name=NAMES, request=REQUESTS)
    def begin(self, name, request):
        if request in self.held:
            return
        idle = [other for other in self.last_used if other not in self.held.values()]
        slot = self.slots.claim(name)
        if name not in self.last_used and len(self.last_used) == 3:
            if not idle:
                assert slot is None
                return
            evicted = min(idle, key=self.last_used.get)
            assert slot == self.places.pop(evicted)
            del self.last_used[evicted]
        assert slot in range(3)
        assert self.places.get(name, slot) == slot
        self.places[name] = slot
        self.use(name)
        self.slots.hold(name, request)
        self.held[request] = name

    @rule(request=REQUESTS)
    def end(self, request):
        self.slots.release(request)
        if request in self.held:
            self.use(self.held.pop(request))

    @rule(name=NAMES)
    def unload(self, name):
        if name not in self.held.values():
            self.slots.forget(name)
            self.last_used.pop(name, None)
            self.places.pop(name, None)

    @invariant()
    def adapters_are_where_the_reference_has_them(self):
        assert {name for name in "abcde" if name in self.slots} == set(self.last_used)
        assert {name: self.slots[name] for name in self.last_used} == self.places
        assert len(set(self.places.values())) == len(self.places)
        assert all(self.slots.is_held(name) == (name in self.held.values()) for name in "abcde")


SlotsMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
TestSlots = SlotsMachine.TestCase
