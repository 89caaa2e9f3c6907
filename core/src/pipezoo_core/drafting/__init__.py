"""Drafts without a model: what an answer may go on with, found in what is there already. Knows no torch."""

from __future__ import annotations

from pipezoo_core.drafting.acceptance import Acceptance
from pipezoo_core.drafting.drafter import MAX_GUESSED, Drafter, Guess
from pipezoo_core.drafting.prompt_lookup import Match, PromptLookup
from pipezoo_core.drafting.step_balance import StepBalance
from pipezoo_core.drafting.step_times import StepCosts, StepTimes

__all__ = [
    "MAX_GUESSED",
    "Acceptance",
    "Drafter",
    "Guess",
    "Match",
    "PromptLookup",
    "StepBalance",
    "StepCosts",
    "StepTimes",
]
