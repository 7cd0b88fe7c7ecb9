"""``python -m bench``: every benchmark, one after the other."""

from bench import exact_matmul, host_overhead, optimizer, step_time

exact_matmul.main()
step_time.main()
optimizer.main()
host_overhead.main()
