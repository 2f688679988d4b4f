"""Bars: what each figure means, and the bar it is held to."""

from collections.abc import Callable
from functools import partial
from statistics import mean, median

from benchmarks.figures.bar import Figure, Result, at_least, at_most, exactly, shown


def _against_the_fastest(result: Result, unit: str = "") -> str:
    """Our rate and that of the fastest other server, for each workload whose name ends in `unit`."""
    compared = []
    for workload, rates in _medians(result, unit).items():
        others = {peer: rate for peer, rate in rates.items() if peer != "Sextet"}
        if "Sextet" in rates and others:
            fastest = max(others, key=others.__getitem__)
            compared.append(f"{workload} {rates['Sextet']:.0f}/s, {fastest} {others[fastest]:.0f}/s")
    return "; ".join(compared)


def _against(peer: str, result: Result) -> str:
    """Our rate and that of a peer, for each workload of both."""
    both = {workload: rates for workload, rates in _medians(result).items() if {"Sextet", peer} <= rates.keys()}
    return "; ".join(f"{workload} {one['Sextet']:.0f}/s, {peer} {one[peer]:.0f}/s" for workload, one in both.items())


def _medians(result: Result, unit: str = "") -> dict[str, dict[str, float]]:
    """The median rates of servers by workload, of those whose name ends in `unit`."""
    rates: dict[str, dict[str, float]] = {}
    for entry in result["peers"]:
        if entry["inputs_per_s"] and entry["workload"].endswith(unit):
            rates.setdefault(entry["workload"], {})[entry["peer"]] = median(entry["inputs_per_s"])
    return rates


def _share_of_the_model(label: str) -> Callable[[Result], str]:
    """How much of a request's time the model's queue and forward take in the points of that label."""

    def share(result: Result) -> str:
        points = [one for one in result["points"] if one["label"].startswith(label) and "parts_ms" in one]
        if not points:
            return ""
        latency_ms = mean(one["latency_ms"]["mean"] for one in points)
        model_ms = mean(one["parts_ms"]["queue"]["mean"] + one["parts_ms"]["inference"]["mean"] for one in points)
        return f"the model's queue and forward take {model_ms:.0f} of the {latency_ms:.0f} ms of a request"

    return share


def _largest_replica(result: Result) -> str:
    """The task whose replica has most above its model files."""
    row = max(result["tasks"], key=lambda one: one["above_files_mib"])
    return f"{row['task']}, {row['resident_mib']:.0f} MiB with {row['model_files_mib']:.0f} of files"


def _made_of(**figures: str) -> Callable[[Result], str]:
    """The medians of the times, in ms, that a figure is made of."""

    def times(result: Result) -> str:
        parts = [f"{shown(median(result['figures'][name]))} ms {what}" for what, name in figures.items()]
        return ", ".join(part.replace("_", " ") for part in parts)

    return times


ENCODER_FIGURES = {
    "offline_served_over_raw": Figure(
        "BERT-base shape, int8, 128 tokens, Offline: inputs/s over the bare runtime's best: every batch size, threads "
        "that spin or not, or a run on each core",
        at_least(0.97),
    ),
    "server_rate_over_raw": Figure(
        "the same, Server: highest Poisson rate with p99 within 8 times the bare service time of one, over the same",
        at_least(0.9),
    ),
    "mixed_over_count_batching": Figure(
        "BERT-base shape, log-normal lengths (median 24, p95 200 tokens), Offline, over in-process batches of 8 by "
        "arrival",
        at_least(1.5),
    ),
    "small_over_noop": Figure(
        "MiniLM-L6 shape, 16 tokens, c=32: requests/s over those of a replica that does nothing, on the same ingress",
        at_least(0.6),
        _share_of_the_model("minilm-l6 16 offline"),
    ),
    "small_over_limit": Figure(
        "the same, over what the cores can do: the CPU time of a row in the bare runtime at its best batch, and that "
        "of a request of the replica that does nothing",
        at_least(0.85),
        _share_of_the_model("minilm-l6 16 offline"),
    ),
    "over_openvino_encoders": Figure(
        "the smaller of BERT-base 128 and MiniLM mixed, Offline, over OpenVINO's int8 (NNCF) behind Mosec",
        at_least(1.1),
        partial(_against, "openvino"),
    ),
    "over_best_peer_encoders": Figure(
        "the same over the best other server, each with its own best artifact and batches",
        at_least(1.2),
        _against_the_fastest,
    ),
    "over_best_peer_without_our_graph": Figure(
        "the same over the best of those that serve what they make of the checkpoint themselves, or Optimum makes"
    ),
    "over_ray_serve_transformers": Figure(
        "the same over Ray Serve with a transformers pipeline and `@serve.batch`", at_least(3)
    ),
    "added_p50_ms": Figure(
        "what HTTP, ingress and batching add to one request at a time (MiniLM-L6 shape, 16 tokens)", at_most(2)
    ),
    "calibration_survives": Figure(
        "DistilBERT's size, one request at a time of 16, 64 and 128 tokens: after a start beside four busy processes, "
        "which then ended, over a quiet start",
        at_least(0.95),
    ),
}
PUBLISHED_ALONE = {8: 248, 16: 212, 32: 150, 64: 97, 128: 55, 256: 27, 512: 12}
"""Requests per second that Hugging Face published of Infinity, one at a time, DistilBERT on two Ice Lake cores."""
BARS_ALONE = {16: 0.80, 64: 0.92, 128: 0.95}
ENCODER_FIGURES |= {
    f"single_stream_over_raw_{tokens}": Figure(
        f"DistilBERT's size, int8, {tokens} tokens, one request at a time, over the bare runtime's best with one row",
        at_least(BARS_ALONE[tokens]) if tokens in BARS_ALONE else None,
    )
    for tokens in PUBLISHED_ALONE
} | {
    f"single_stream_{tokens}_per_s": Figure(
        f"the same, requests/s; published of Infinity on two Ice Lake cores: {rate}"
    )
    for tokens, rate in PUBLISHED_ALONE.items()
}
GENERATION_FIGURES = {
    "one_stream_over_best": Figure(
        "prompts of 64 tokens, 64 new ones, greedy, one stream over HTTP, tokens/s over the best of OpenVINO GenAI, "
        "onnxruntime-genai and llama.cpp: the smaller of SmolLM2-135M and of Qwen2-0.5B's shape",
        at_least(1.2),
        partial(_against_the_fastest, unit="one stream, prompts of 64, tokens/s"),
    ),
    "one_stream_long_over_best": Figure("SmolLM2-135M, the same with prompts of 2,000 tokens"),
    "served16_over_best_ctx64": Figure(
        "SmolLM2-135M, 16 streams over HTTP, tokens/s over the best of those and vLLM, in continuous or static batches",
        at_least(1.2),
        partial(_against_the_fastest, unit="16 at once, prompts of 64, tokens/s"),
    ),
    "served16_over_best_ctx512": Figure(
        "the same with prompts of 512 tokens",
        at_least(1.2),
        partial(_against_the_fastest, unit="16 at once, prompts of 512, tokens/s"),
    ),
    "served16_over_best_larger": Figure("Qwen2-0.5B's shape, the same with prompts of 64 tokens, without vLLM"),
    "goodput_over_best": Figure(
        "SmolLM2-135M, open loop, log-normal lengths (prompts: median 96, p95 384; answers: 48, 160): highest rate at "
        "which 9 of 10 answers have TTFT within 1 s and 100 ms a token, over the better of OpenVINO GenAI behind a "
        "small server and llama.cpp's own",
        at_least(1.3),
        partial(_against_the_fastest, unit="within the service level"),
    ),
    "served_over_engine": Figure("16 streams over HTTP over 16 in the engine in-process, tokens/s", at_least(0.93)),
    "translation_beam4_over_ct2": Figure(
        "Marian-size translation to 16 clients over HTTP with four beams, sentences/s over CTranslate2 int8 on the "
        "same weights, in-process batches of 16",
        at_least(1.3),
        partial(_against_the_fastest, unit="beam4, sentences/s"),
    ),
    "translation_greedy_over_ct2": Figure(
        "the same, greedy", at_least(2.2), partial(_against_the_fastest, unit="greedy, sentences/s")
    ),
    "ttft_p99_chunks": Figure(
        "p99 of the wait for the first token of a short prompt while one of 1,000 tokens is read, in the time of a "
        "chunk of a prompt",
        at_most(3),
    ),
    "step_overhead": Figure(
        "share of the time of rounds of 16 rows that is spent outside of ONNX Runtime", at_most(0.1)
    ),
    "guided_overhead": Figure("time of steps of 16 rows that are held to a JSON Schema over free ones", at_most(1.1)),
    "guided_valid": Figure("of answers to random JSON Schemas that ended, how many are valid", exactly(1)),
    "slots_over_plain": Figure(
        "Qwen3-0.6B's shape in int8, 16 streams, tokens/s in slots over Optimum's graph, in turns", at_least(8)
    ),
    "lookup_speedup": Figure("one stream that copies, tokens/s with `lookup_tokens: 8` over without", at_least(1.5)),
    "lookup_crowd": Figure("16 streams, tokens/s with `lookup_tokens: 8` over without", at_least(0.98)),
}
FAIRNESS_FIGURES = {
    "short_p99_beside_list": Figure(
        "p99 of a sentence to classify, Poisson arrivals of 20/s, beside one list of 1,024 texts of 400 words, over "
        "its p99 alone",
        at_most(6),
        _made_of(alone="short_p99_alone_ms", beside_it="short_p99_beside_list_ms"),
    ),
    "short_refused_beside_list": Figure("of those beside the list, how many were not answered", exactly(0)),
    "short_generation_p50_beside_streams": Figure(
        "p50 of 8 new tokens beside 8 streams of 2,000 in 8 slots, over its p50 alone",
        at_most(8),
        _made_of(alone="short_generation_p50_alone_ms", beside_them="short_generation_p50_beside_streams_ms"),
    ),
    "classify_loop_cpu_ms": Figure(
        "CPU time of the replica's event loop per request of 16 tokens, less that of a replica that does nothing",
        at_most(0.2),
        _made_of(a_request="loop_cpu_of_classify_ms", one_of_a_replica_that_does_nothing="loop_cpu_of_noop_ms"),
    ),
    "classify_loop_cpu_at_equal_rate_ms": Figure(
        "the same, less that of a replica that does nothing but wait, at as many requests a second"
    ),
    "loop_cpu_of_classify_ms": Figure("CPU time of the event loop per request, of the replica that classifies"),
    "loop_cpu_of_noop_ms": Figure("the same, of the replica that does nothing"),
    "loop_cpu_of_noop_at_equal_rate_ms": Figure("the same, of the replica that does nothing but wait"),
    "short_p99_alone_ms": Figure("p99 of the sentence alone"),
    "short_p99_beside_list_ms": Figure("p99 of the sentence beside the list; 15,000 where more than 1% had no answer"),
    "short_generation_p50_alone_ms": Figure("p50 of the 8 new tokens alone"),
    "short_generation_p50_beside_streams_ms": Figure("p50 of them beside the streams; 15,000 where most had no answer"),
}
SERVICE_FIGURES = {
    "observed_over_bare": Figure(
        "the sentiment model, one text a request, 32 clients: requests/s with metrics, a log of 1% and traces of 1%, "
        "over those of the same replica while nothing is observed",
        at_least(0.97),
    ),
    "observed_request_us": Figure(
        "CPU microseconds of a replica's observers for one request of an encoder and its batch: metrics, a log that is "
        "off, signals for autoscaling",
        at_most(10),
    ),
    "root_over_direct": Figure(
        "a replica that does nothing: requests/s of /v1/completions over those of the task's own path", at_least(0.95)
    ),
    "grpc_over_http": Figure(
        "lists of 32 sentences to classify, four clients of Triton's: inputs/s over gRPC over those over HTTP, binary",
        at_least(1),
    ),
    "canary_lost": Figure("requests without an answer while the split changes 100 times under load", exactly(0)),
    "canary_share_error": Figure("10,000 requests with a share of 5%: by how many points it was wrong", at_most(0.5)),
    "observed_stream_us": Figure("the same for a stream of 64 tokens"),
    "sampled_request_us": Figure("the same as for one request, with a log of 1% and traces of 1% to a collector"),
    "observed_per_s": Figure("requests/s of it while it is observed"),
    "bare_per_s": Figure("requests/s of it otherwise"),
    "direct_per_s": Figure("requests/s at the task's own path"),
    "grpc_inputs_per_s": Figure("inputs/s over gRPC"),
    "http_inputs_per_s": Figure("inputs/s over HTTP"),
}
SOAK_FIGURES = {
    "soak_memory_growth": Figure("a replica's resident memory after 10 minutes at 70% of its capacity", at_most(0.03)),
    "different_answers": Figure("answers in a crowd that differ from those of the same request alone", exactly(0)),
    "free_slots_at_the_end": Figure("of 16 slots", exactly(16)),
}
FOOTPRINT_FIGURES = {
    "fresh_serve_s": Figure("seconds from a clone to `ready`, with nothing cached but downloads", at_most(180)),
    "restart_s": Figure("seconds from the command to `ready`, with six tasks built", at_most(15)),
    "replica_overhead_mib": Figure(
        "largest resident memory of a replica above its model files, MiB", at_most(180), _largest_replica
    ),
}
STREAMS = (1, 16, 64, 256)
ROWS, TOKENS = "rows/s", "tokens/s"  # how the names of the workloads end
GPU_FIGURES = {
    "gpu_parity": Figure(
        "share of the tests of tests/gpu/test_parity.py that pass: six tasks, fifteen architectures, answers equal",
        exactly(1),
    ),
    "gpu_served_over_raw": Figure(
        "BERT-base shape, fp16, 128 tokens, Offline (64 clients with lists of 32): rows/s over the same artifact "
        "in-process, tokenized before, with IO binding and its best batch",
        at_least(0.8),
    ),
    "gpu_server_rate_over_raw": Figure(
        "the same, Server: highest Poisson rate of single rows with p99 within 50 ms, over the same", at_least(0.6)
    ),
    "gpu_over_transformers": Figure(
        "Offline, over PyTorch and transformers (fp16, SDPA, torch.compile where it is faster) behind aiohttp",
        at_least(2),
        partial(_against_the_fastest, unit=ROWS),
    ),
    "gpu_rows_s": Figure("rows/s in-process", at_least(10_000)),
    "gpu_rows_s_served": Figure("rows/s of Offline"),
    "gpu_rate_s": Figure("rows/s of Server"),
    "gpu_tokens_s_over_transformers": Figure(
        "the smaller of both shapes, prompts of 128 tokens, 64 new ones, greedy: 64 streams over HTTP over "
        "`model.generate` (fp16, SDPA) with a static batch of 64, tokens/s",
        at_least(5),
        partial(_against_the_fastest, unit=TOKENS),
    ),
    **{
        f"gpu_tokens_s_{name}_{streams}": Figure(f"{shape} shape, streams over HTTP at once: {streams}, tokens/s")
        for name, shape in (("smollm2", "SmolLM2-135M"), ("qwen2", "Qwen2-0.5B"))
        for streams in STREAMS
    },
}
FAULT_FIGURES = {
    "lost_replica_killed": Figure("short requests without an answer while replicas are killed", exactly(0)),
    "lost_replica_hung": Figure("the same while one of two replicas hangs, until Ray Serve kills it", exactly(0)),
    "lost_haproxy_reload_20x": Figure("the same through 20 reloads of HAProxy", exactly(0)),
    "lost_rolling_update": Figure("the same while the replica is replaced", exactly(0)),
    "lost_scale_1_4_1_20x": Figure("the same through 20 changes from one replica to four and back", exactly(0)),
    "lost_haproxy_killed": Figure(
        "the same when HAProxy is killed, but for those inside and those refused while it is away", exactly(0)
    ),
    "gap_replica_killed_s": Figure("longest time without an answer after the only replica was killed", at_most(7)),
    "gap_replica_of_two_killed_s": Figure("the same after one of two was killed", at_most(0.3)),
    "gap_replica_hung_s": Figure("the same after one of two hung"),
    "gap_new_model_s": Figure("the same while a new model takes over", at_most(0.3)),
    "gap_haproxy_killed_s": Figure("the same after HAProxy was killed", at_most(2)),
    "gap_controller_killed_s": Figure("the same after Ray Serve's controller was killed", at_most(0.3)),
    "ready_false_s": Figure("the longest time at once that `/ready` was wrong, of all faults", at_most(1)),
    "overload5_goodput": Figure(
        "answers within the deadline of 2 s over capacity, in an open loop at five times the capacity", at_least(0.9)
    ),
    "overload5_refusal_p99_ms": Figure("p99 of the time until a 429 meanwhile", at_most(50)),
    "overload_recovery_s": Figure("from the end of that until the next request is answered", at_most(2)),
    "fuzz_5xx": Figure("of 100,000 hostile requests over all protocols: answers above 499, and hangs", exactly(0)),
    "fuzz_memory_mib": Figure(
        "memory of replicas and HAProxy at rest after them, above that at rest after some of each kind, with KV cache "
        "slots full",
        at_most(30),
    ),
    "guard_cost": Figure("requests/s of a replica that does nothing, with keys over without", at_least(0.95)),
    "long_stream_cut": Figure(
        "streams of minutes that a change of configuration, a downscale, a rolling update or SIGTERM cut", exactly(0)
    ),
}
SCALE_FIGURES = {
    "slo_attainment": Figure(
        "a day in ten minutes, a slow model on one to four replicas that knows the pattern of earlier days: requests "
        "within the level of 1 s",
        at_least(0.95),
    ),
    "replica_seconds_over_static_peak": Figure("replicas over that day, over four all day", at_most(0.74)),
    "slo_over_default_policy": Figure(
        "that share over the one of Ray Serve's default policy, on the same arrivals and no fewer replica-seconds",
        at_least(1.1),
    ),
    "zero_lost": Figure("100 requests at once to a model without a replica: not answered with 200", exactly(0)),
    "zero_first_answer_s": Figure("from sending these to the first answer", at_most(6)),
    "plan_error": Figure(
        "what `sextet plan` says of a log over what the cluster did, less 1: the worst of p50, p99 and seconds of "
        "replicas, of two fixed ones, and of one to three by Ray Serve's policy and by that for a service level",
        at_most(0.15),
    ),
    "plan_replicas": Figure("replicas at once of a simulated day, within five minutes", at_least(2000)),
    "batch_over_raw": Figure("rows/s of `sextet batch` over the bare runtime's best, MiniLM, mixed", at_least(0.9)),
    "batch_resume_lost": Figure("rows lost or twice after three kills of `sextet batch`", exactly(0)),
    "nodes_lost": Figure(
        "short requests without an answer behind the balancer, of four nodes one killed, one silent", exactly(0)
    ),
}
FIGURES = (
    FOOTPRINT_FIGURES
    | ENCODER_FIGURES
    | GENERATION_FIGURES
    | FAIRNESS_FIGURES
    | SERVICE_FIGURES
    | SOAK_FIGURES
    | FAULT_FIGURES
    | SCALE_FIGURES
    | GPU_FIGURES
)
