"""What a training step costs on a chip that nobody has at hand: ``anew estimate``. All of it is projected."""
