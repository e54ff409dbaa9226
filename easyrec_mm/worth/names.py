"""Names of the arms of the test. The command line uses them, too, so this module imports nothing."""

from __future__ import annotations

OWN, NONE, SHUFFLED, FROZEN, END_TO_END = "own", "none", "shuffled", "frozen", "end_to_end"
NO_TEXT, NO_CONTENT = "no_text", "no_content"
# Arm -> description for reports.
ARMS = {
    OWN: "as the config is",
    NONE: "without pictures",
    SHUFFLED: "with the pictures of other items",
    FROZEN: "with a frozen backbone",
    END_TO_END: "with all of the image tower trained",
    NO_TEXT: "without texts of items",
    NO_CONTENT: "without pictures and texts of items",
}
