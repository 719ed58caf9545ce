"""The view of reasons: each kernel's candidates, and what passes remarked."""

from __future__ import annotations

from moec.exploring.page import page as page_of

from .browser import opened
from .test_page import of

CANDIDATES = [
    {"kernel": "fast", "eligible": False, "reason": "needs avx512", "chosen": False},
    {"kernel": "plain", "eligible": True, "reason": "takes any size", "chosen": True},
    {"kernel": "slow", "eligible": True, "reason": "comes later", "chosen": False},
]


def kernel(name, candidates):
    return {"name": name, "op": "MatMul", "computes": "y = x @ w", "candidates": candidates}


def report(folder, **sections):
    path = folder / "report.html"
    path.write_text(page_of(of("a", **sections)), encoding="utf-8")
    return path


def test_kernels_with_a_choice_stand_first_and_lead_to_their_losers(running, tmp_path):
    kernels = [kernel("mapping", CANDIDATES[1:2]), kernel("product", CANDIDATES)]
    with opened(running, report(tmp_path, kernels=kernels), "#why") as page:
        assert page.locator("tbody th").all_inner_texts() == ["product", "mapping"]
        page.click("a:text-is('product')")
        page.wait_for_selector(".candidates")
        texts = [" ".join(text.split()) for text in page.locator(".candidates li").all_inner_texts()]
        assert texts == [
            "plain chosen takes any size",
            "fast not possible needs avx512",
            "slow possible, not chosen comes later",
        ]


def test_warnings_stand_before_notes(running, tmp_path):
    remarks = [
        {"pass_name": "raise-moe", "subject": "node", "message": "left as it is", "severity": severity}
        for severity in ("note", "warning")
    ]
    with opened(running, report(tmp_path, remarks=remarks), "#why") as page:
        assert page.locator("caption").all_inner_texts() == ["Warnings", "Remarks of passes"]


def test_without_remarks_the_view_says_that_there_is_none(running, tmp_path):
    with opened(running, report(tmp_path, kernels=[kernel("product", CANDIDATES)]), "#why") as page:
        assert "No pass remarked" in page.inner_text("main")
