"""Programs that others published as accepted or rejected by the engine, as data that runs on the emulated one."""
