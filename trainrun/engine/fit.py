"""The loop. Read `fit` from top to bottom and you know what a run does, and in which order."""

from __future__ import annotations

import torch

from trainrun.draw import step_seed
from trainrun.engine.feed import Batch
from trainrun.engine.run import Run
from trainrun.engine.signals import Interrupted


def fit(run: Run) -> str:
    """Train until the epochs are done or something stops the run; returns the reason, a word of result.json's `stop`.

    At the top of each turn stands what is owed at this step, so that a run resumed at any step owes the same.
    """
    plan, state, record, world, keeper = run.plan, run.state, run.record, run.world, run.keeper
    batches = run.batches(state.step)
    keeper.start()
    run.teller.start()
    while True:
        stop_signal, save_asked, save_due = world.any(run.signals.stop is not None, run.signals.save, keeper.due(state.step))

        try:
            # Report: training figures of the period, validation, best so far.
            if plan.report(state.step) and state.reported < state.step:
                run.read_record()
                figures = record.period.figures("train")
                if run.validation and plan.evaluation(state.step):
                    figures |= run.validate()
                    run.observe(figures)
                state.reported = state.step
                record.period.clear()
                run.teller.epoch(figures | run.miner.figures("period"))
                save_due |= state.is_best

            # Mine: a round, after which other pictures follow.
            if run.miner.mine(run):
                batches, save_due = run.batches(state.step), True
        except Interrupted:  # the evaluation or the round is owed still, and is made when the run goes on
            keeper.save()
            return "signal"

        # Stop, save.
        done = state.step >= plan.stop or run.out_of_patience()
        if done or stop_signal or save_asked or save_due:
            keeper.save()
            state.is_best = run.signals.save = False
        if run.out_of_patience():
            return "early_stopping"
        if done:
            # At a stop_at between evaluations a look is told and not kept, so that a run that goes on is as if it had never stopped.
            if not plan.evaluation(state.step):
                run.teller.epoch(record.period.figures("train") | run.validate())
            return "epochs" if plan.stop == plan.total else "stop_at"
        if stop_signal:
            return "signal"

        # One step: schedule, draw, mine, forward, backward, clip, update.
        try:
            with run.answering():
                batch = next(batches)
        except Interrupted:  # no step has begun
            keeper.save()
            return "signal"
        with run.compiling():
            totals = train_step(run, batch, run.schedule(state.step))
        record.write(totals, batch.whole)
        state.step += 1
        run.teller.progress()

        # Log.
        if state.step % plan.log_every == 0:
            run.read_record(batch)
            run.teller.step(record.interval.figures("train") | run.miner.figures("interval"), record.interval.samples)
            record.interval.clear()
        elif record.full:
            run.read_record(batch)


def train_step(run: Run, batch: Batch, lr: float) -> torch.Tensor:
    """One optimizer update on a batch, in micro-batches where asked for; never waits for the device.

    The gradient is that of the mean loss over the step's whole batch, or what mining keeps of it, however it is split.
    Returns the task's sums over all of the batch and, where it is clipped, the gradient's norm: float64 on the device.
    """
    run.set_rates(lr)
    batch = run.miner.choose(run, batch)
    run.seed_model_draws(step_seed(run.recipe.seed, run.state.step, run.world.rank))
    totals = torch.zeros(len(run.task.sums) + 1, dtype=torch.float64, device=run.world.device)
    micro_batches = batch.split(run.recipe.micro_batch)
    for n, micro in enumerate(micro_batches, 1):
        run.forward.require_backward_grad_sync = n == len(micro_batches)  # processes exchange gradients once a step
        images, targets = run.inputs(micro, training=True)
        with run.world.autocast(run.recipe.precision):
            outputs, losses, sums = run.task.learn(run.forward, images, targets, micro)
        share = run.miner.weigh(micro, outputs, losses).sum() * (run.world.size / batch.whole)
        run.scaler.scale(share).backward()
        totals[:-1] += sums
    if run.recipe.clip is not None:
        run.scaler.unscale_(run.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.recipe.clip)
        if not run.scaler.is_enabled():  # where it is, an infinite gradient is its daily business
            totals[-1] = norm
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)
    run.average.update(run.state.step + 1)
    return run.miner.totals(totals)
