"""``python -m bench``: every benchmark, one after the other."""

from bench import exact_matmul, host_overhead, step_time

exact_matmul.main()
step_time.main()
host_overhead.main()
