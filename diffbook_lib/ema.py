import numpy as np, torch
from dataclasses import dataclass
def power_exponent(s):
    s = s**-2
    return float(np.roots([1, 7, 16 - s, 12 - s]).real.max())
@dataclass(frozen=True)
class P:
    name: str
    rule: str
    value: float
    exponent: float = 0.0
    def beta(self, t, batch):
        if self.rule=="power": return (1-1/t)**(self.exponent+1)
        return min(self.value,(1+t)/(10+t))
def profile(text):
    r,_,v = text.partition("-"); v=float(v)
    if r not in ("classic","power"): raise ValueError(f"unknown {text}")
    return P(text,r,v,power_exponent(v) if r=="power" else 0.0)
class EMA:
    def __init__(self, net, profile, batch):
        self.profile=profile; self.batch=batch; self.updates=0
        self.parameters={n:p.detach().to(torch.float32,copy=True) for n,p in net.named_parameters()}
        self.buffers={n:b.detach().clone() for n,b in net.named_buffers()}
    @torch.no_grad()
    def update(self, net):
        self.updates+=1
        torch._foreach_lerp_(list(self.parameters.values()), [p.float() for p in net.parameters()], 1-self.profile.beta(self.updates,self.batch))
        for k,b in zip(self.buffers.values(), net.buffers()): k.copy_(b)
    @torch.no_grad()
    def copy_to(self, net):
        for p,a in zip(net.parameters(), self.parameters.values()): p.copy_(a)
        for b,k in zip(net.buffers(), self.buffers.values()): b.copy_(k)
    def state_dict(self): return {**self.parameters, **self.buffers, "updates": torch.tensor(self.updates)}
    @torch.no_grad()
    def load_state_dict(self, state):
        own=self.parameters|self.buffers
        if d:=sorted(set(state)^{*own,"updates"}): raise ValueError(str(d))
        self.updates=int(state["updates"])
        for n,t in own.items(): t.copy_(state[n])
