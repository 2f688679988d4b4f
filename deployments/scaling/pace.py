"""Pace: Ray Serve acts at once where a request waits for a model without a replica, and soon while replicas start.

By itself its controller looks twice a second: at the requests that wait, at what it has decided, at the process that
it asked for, at the model that is loaded in it. A start waits for each of these looks. Looking ten times a second all
the time would take 4% of a core.
"""

import asyncio
from typing import Any

HURRIED_S = 0.1


def hurry_starts() -> None:
    """Call it in the processes of Ray Serve's controller and of its fallback proxy before they serve."""
    _report_what_waits_now()
    _look_soon_while_replicas_start()


def _report_what_waits_now() -> None:
    """The fallback proxy reports the first request for a model without a replica at once. By itself it reports its last
    count, of up to a second ago, which had no request.
    """
    from ray.serve._private.router import RouterMetricsManager  # Ray Serve has no setting for this

    push = RouterMetricsManager.push_autoscaling_metrics_to_controller

    def count_and_push(manager: Any) -> None:
        if manager.num_queued_requests and manager.autoscaling_config is not None:
            manager._add_autoscaling_metrics_point()
        push(manager)

    RouterMetricsManager.push_autoscaling_metrics_to_controller = count_and_push


def _look_soon_while_replicas_start() -> None:
    from ray.serve._private import controller
    from ray.serve._private.common import ReplicaState
    from ray.serve.schema import ApplicationStatus

    server, usual_s = controller.ServeController, controller.CONTROL_LOOP_INTERVAL_S
    step, hear = server.run_control_loop_step, server.record_autoscaling_metrics_from_handle
    starting = [ReplicaState.STARTING, ReplicaState.UPDATING]

    async def look(serve: Any, *given: Any) -> None:
        await step(serve, *given)
        serve.sextet_given = given
        changing = any(
            one.target_num_replicas > one.get_num_running_replicas() or one._replicas.count(states=starting)
            for one in serve.deployment_state_manager._deployment_states.values()
        ) or any(
            one.status == ApplicationStatus.DEPLOYING
            for one in serve.application_state_manager._application_states.values()
        )
        controller.CONTROL_LOOP_INTERVAL_S = min(HURRIED_S, usual_s) if changing else usual_s

    async def wake(serve: Any) -> None:
        await look(serve, *serve.sextet_given)  # it decides
        await look(serve, *serve.sextet_given)  # and starts a replica

    def hear_and_wake(serve: Any, report: Any) -> None:
        hear(serve, report)
        asleep = [name for name, one in serve.deployment_state_manager._deployment_states.items() if _is_asleep(one)]
        count = serve.autoscaling_state_manager.get_total_num_requests_for_deployment
        if hasattr(serve, "sextet_given") and any(count(name) > 0 for name in asleep):
            serve.sextet_waking = asyncio.create_task(wake(serve))  # a loop keeps no reference to its tasks

    server.run_control_loop_step, server.record_autoscaling_metrics_from_handle = look, hear_and_wake


def _is_asleep(deployment: Any) -> bool:
    return bool(deployment.should_autoscale()) and deployment.target_num_replicas == 0
