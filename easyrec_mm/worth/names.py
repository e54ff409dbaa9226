"""Names of the arms of the test. The command line uses them, too, so this module imports nothing."""

from __future__ import annotations

OWN, NONE, SHUFFLED, FROZEN, END_TO_END = "own", "none", "shuffled", "frozen", "end_to_end"
# Arm -> description for reports.
ARMS = {
    OWN: "as the config is",
    NONE: "without pictures",
    SHUFFLED: "with the pictures of other items",
    FROZEN: "with a frozen backbone",
    END_TO_END: "with all of the image tower trained",
}
