"""Learning-rate schedules: warm-ups and decays as pure functions of progress, composed as lr = base x warm-up x decay.

Every part returns a factor of the base learning rate. Nothing is kept between calls, so a schedule can be drawn before the run
and a resumed run has nothing of it to restore: what a part may look at of the run so far is in its Progress.
"""

from trainrun.parts.schedules import decays, peaks, plateau, warmups, waves
from trainrun.parts.schedules.curve import Schedule, make_schedule
from trainrun.parts.schedules.progress import Progress

__all__ = ["Progress", "Schedule", "decays", "make_schedule", "peaks", "plateau", "warmups", "waves"]
