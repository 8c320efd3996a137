"""The ten-line swap: an ordinary training script in which one line changes.

`lossary.LDRKLLoss()` stands where `nn.CrossEntropyLoss()` stood. The call, the shapes and the
meaning of the label -100 (no label: leave this row out) stay the same, so nothing else changes.
"""

import torch
from torch import nn

import lossary

# Three overlapping clouds of points in the plane; one training label in ten is missing (-100).
torch.manual_seed(0)
labels = torch.randint(3, (900,))
points = torch.tensor([[0.0, 2.0], [-2.0, -1.0], [2.0, -1.0]])[labels] + torch.randn(900, 2)
train_labels = labels[:600].masked_fill(torch.rand(600) < 0.1, -100)

model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 3))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
criterion = lossary.LDRKLLoss()  # was: criterion = nn.CrossEntropyLoss()
for _ in range(100):
    loss = criterion(model(points[:600]), train_labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
correct = model(points[600:]).argmax(dim=1) == labels[600:]
print(f"test accuracy: {correct.float().mean():.1%}")
