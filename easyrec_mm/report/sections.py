"""The sections of the report, in the order of its tabs. A new one is a function in a module, and a line here."""

from __future__ import annotations

from easyrec_mm.report.atlas import atlas
from easyrec_mm.report.calibration import calibration
from easyrec_mm.report.curves import learning, speed
from easyrec_mm.report.data import data
from easyrec_mm.report.examples import examples
from easyrec_mm.report.influence import influence
from easyrec_mm.report.leakage import leakage
from easyrec_mm.report.metrics import metrics, slices
from easyrec_mm.report.problems import problems
from easyrec_mm.report.ranking import curves
from easyrec_mm.report.reasons import reasons
from easyrec_mm.report.scores import histograms
from easyrec_mm.report.section import Section
from easyrec_mm.report.seen import seen
from easyrec_mm.report.similar import similar
from easyrec_mm.report.summary import summary

SECTIONS: list[Section] = [
    Section("summary", "Summary", summary),
    Section("learning", "Learning curves", learning),
    Section("speed", "Speed", speed),
    Section("metrics", "Metrics", metrics),
    Section("slices", "Slices", slices),
    Section("curves", "ROC and PR", curves),
    Section("calibration", "Calibration", calibration),
    Section("scores", "Predictions", histograms),
    Section("examples", "Best and worst", examples),
    Section("ablation", "What it uses", influence),
    Section("attributions", "Why these predictions", reasons),
    Section("saliency", "Where it looks", seen),
    Section("neighbours", "Similar pictures", similar),
    Section("map", "Map of pictures", atlas),
    Section("leakage", "Shared pictures", leakage),
    Section("data", "Data and config", data),
    Section("problems", "What went wrong", problems),
]
