"""One head of keys and values for all heads of queries."""

import base


class MultiQuery(base.SelfAttention):
    def __init__(self, dim, window, attend, *, gated):
        super().__init__(dim, window, attend, gated=gated)
        self.key, self.value = base.Linear(dim, base.HEAD_DIM), base.Linear(dim, base.HEAD_DIM)

    def forward(self, x, embedded, cos, sin):
        q = self.query(x).view(*x.shape[:2], -1, base.HEAD_DIM)
        k, v = (part(x)[:, :, None].expand_as(q) for part in (self.key, self.value))
        if self.gate is not None and embedded is not None:
            gate = 2 * self.gate(x[..., : base.VALUE_GATE_CHANNELS]).sigmoid()
            v = v + gate[..., None] * embedded.view(q.shape)
        q, k = base.norm(base.rotate(q, cos, sin)), base.norm(base.rotate(k, cos, sin))
        return self.project(self.attend(q, k, v, self.window).reshape(x.shape))


base.SelfAttention = MultiQuery

build = base.build
if __name__ == "__main__":
    base.main()
