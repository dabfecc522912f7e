"""The GPU benchmark's own arithmetic: kinds of kernels, idle time, and a budget that no part overruns."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "benchmarks"
KERNELS = {
    "convolution": [
        "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64_warpgroupsize1x1x1_g1"
        "_execute_segment_k_off_kernel__5x_cudnn",
        "sm80_xmma_dgrad_implicit_gemm_tf32f32_tf32f32_f32_nhwckrsc_nhwc_tilesize128x128x16_stage4_cudnn",
        "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816fprop_optimized_bf16_256x64_32x4_nhwc_align8>"
        "(cutlass_tensorop_bf16_s16816fprop_optimized_bf16_256x64_32x4_nhwc_align8::Params)",
        "void implicit_convolve_sgemm<__half, __half, 1024, 5, 5, 3, 3, 3, 1, true, false, true>(int, int, int)",
        "cudnn_generated_fort_native_sm80_convFwd_pointwise_pointwise_kernel",
        "void cudnn::cnn::conv2d_grouped_direct_kernel<false, true, false, false, false, false, 0, 0>()",
    ],
    "product": [
        "nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_TNN",
        "ampere_bf16_s16816gemm_bf16_256x128_ldg8_f2f_stages_32x3_nn",
        "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_128x64_64x4_tn_align8>(Params)",
        "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>(cublasSplitKParams<float>)",
        "triton_tem_fused_mm_3",
    ],
    "attention": [
        "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 32, 4>>(Flash_fwd_params)",
        "fmha_cutlassF_bf16_aligned_64x128_rf_sm80(AttentionKernel<cutlass::bfloat16_t>::Params)",
        "void (anonymous namespace)::softmax_warp_forward<float, float, float, 10, false, false>(float*, float const*)",
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x64_kernel0_0",
    ],
    "norm and activation": [
        "void at::native::(anonymous namespace)::RowwiseMomentsCUDAKernel<c10::BFloat16>(long, c10::BFloat16)",
        "void at::native::vectorized_elementwise_kernel<4, at::native::(anonymous namespace)::silu_kernel(at::"
        "TensorIteratorBase&)::{lambda()#1}, std::array<char*, 2ul>>(int)",
        "triton_red_fused_native_group_norm_backward_2",
        "triton_poi_fused_clone_native_group_norm_silu_5",
    ],
    "layout changes": [
        "void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16, __nv_bfloat16, float, false, true, 2>()",
        "void cudnn::engines_precompiled::nhwcToNchwKernel<float, float, float, true, false>()",
    ],
    "copies": [
        "void at::native::elementwise_kernel<128, 4, at::native::gpu_kernel_impl_nocast<at::native::"
        "direct_copy_kernel_cuda(at::TensorIteratorBase&)::{lambda()#3}>>(int)",
        "void at::native::(anonymous namespace)::CatArrayBatchedCopy_contig<OpaqueType<2u>, unsigned int>()",
        "Memcpy HtoD (Pinned -> Device)",
        "Memset (Device)",
        "triton_poi_fused_clone_7",
    ],
    "the rest": [
        "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>>(int)",
        "triton_poi_fused_convolution_9",
    ],
}
"""Names as profiles of H100 and A100 have them, by what the kernels do."""


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a file of the benchmarks by its name."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.mark.parametrize("kind", KERNELS)
def test_kernels_are_known_by_their_names(benchmark: Any, kind: str) -> None:
    kernels = benchmark("kernel_kinds")
    assert {name: kernels.kind(name) for name in KERNELS[kind]} == dict.fromkeys(KERNELS[kind], kind)


def test_idle_is_when_no_kernel_runs(benchmark: Any) -> None:
    """Kernels of two streams overlap; what the CPU does counts nothing."""
    events = [
        {"cat": "kernel", "name": "nvjet_hsh_64x8", "ts": 130.0, "dur": 20.0},
        {"cat": "cpu_op", "name": "aten::mm", "ts": 0.0, "dur": 500.0},
        {"cat": "kernel", "name": "sm90_xmma_fprop_implicit_gemm", "ts": 100.0, "dur": 10.0},
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD (Pinned -> Device)", "ts": 105.0, "dur": 15.0},
        {"cat": "kernel", "name": "nvjet_hsh_64x8", "ts": 160.0, "dur": 5.0},
        {"ph": "M", "name": "process_name"},
    ]
    times = benchmark("kernel_kinds").Times.of(events)
    assert times.seconds == pytest.approx({"convolution": 10e-6, "copies": 15e-6, "product": 25e-6})
    assert times.idle == pytest.approx(20e-6)  # 120 to 130 and 150 to 160
    assert times.kernels == 4
    assert times.longest[0] == pytest.approx(("nvjet_hsh_64x8", 25e-6))


def test_a_part_that_would_overrun_is_skipped_and_one_that_does_is_ended(
    benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = benchmark("gpu").Report(tmp_path / "gpu.json", budget=100)

    def fails() -> None:
        raise RuntimeError("no kernel image is available\nfor execution")

    assert not report.run("long", 101, lambda: pytest.fail("it ran"))
    assert report.run("short", 1, lambda: report.keep("short", "one", seconds=0.5))
    assert not report.run("broken", 1, fails)
    report.budget = time.perf_counter() - report.began + 0.2
    assert not report.run("slow", 0, lambda: time.sleep(30))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("long: skipped: it takes about 101 s, and ")
    assert lines[1:] == [
        "broken: failed: RuntimeError: no kernel image is available",
        "slow: ended: the budget was spent",
    ]
    kept = json.loads((tmp_path / "gpu.json").read_text())
    assert kept["short"] == {"one": {"seconds": 0.5}}
    assert {name: part["found"].partition(":")[0] for name, part in kept["parts"].items()} == {
        "long": "skipped",
        "short": "measured",
        "broken": "failed",
        "slow": "ended",
    }


@pytest.mark.slow
def test_every_part_runs_in_toy_sizes(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    line = [sys.executable, FOLDER / "gpu.py", "--tiny", "--budget", "3000", "--output", path]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    parts = json.loads(path.read_text())["parts"]
    assert {name: part["found"] for name, part in parts.items()} == dict.fromkeys(parts, "measured")
    assert len(parts) > 30
