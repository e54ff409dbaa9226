"""From flat logs, a row an impression, to grouped samples; and between the formats of grouped samples. No TensorFlow."""
