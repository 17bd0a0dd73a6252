"""The plain model of a test, without this library: what initcheck finds here lies in PyTorch and cuBLAS alone."""
import torch

for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
    weight, bias = torch.randn(512, 512).to("cuda", dtype), torch.randn(512).to("cuda", dtype)
    for lead in ((), (1,), (5,), (2, 3)):
        x = torch.randn(*lead, 512).to("cuda", dtype)
        with torch.no_grad():
            for _ in range(3):
                x = x + torch.nn.functional.linear(x, weight, bias)
torch.cuda.synchronize()
