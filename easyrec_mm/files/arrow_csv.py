"""pyarrow's CSV reader without the handlers that it sets for signals.

While it reads in the main thread, they would take SIGINT and SIGTERM: the reading fails, or a training that is to stop
goes on, because its own handler was not called.
"""

import pyarrow as pa
from pyarrow import csv as csv

pa.enable_signal_handlers(False)
