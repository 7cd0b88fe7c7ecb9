"""From an ATen graph to MIL programs: lowering, passes, operand scales."""
