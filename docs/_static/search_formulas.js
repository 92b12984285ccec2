// Summaries of search results are plain text: write the TeX of formulas in signs.
const SIGNS = {
  top: "ᵀ", langle: "⟨", rangle: "⟩", sum: "Σ", int: "∫", infty: "∞", to: "→", partial: "∂", sqrt: "√", cdot: "·",
  le: "≤", ge: "≥", neq: "≠", simeq: "≃", propto: "∝", pm: "±", lVert: "‖", rVert: "‖",
  alpha: "α", beta: "β", gamma: "γ", Gamma: "Γ", delta: "δ", Delta: "Δ", epsilon: "ε", varepsilon: "ε", eta: "η",
  theta: "θ", Theta: "Θ", kappa: "κ", lambda: "λ", mu: "μ", pi: "π", rho: "ρ", sigma: "σ", Sigma: "Σ", tau: "τ",
  phi: "φ", varphi: "φ", psi: "ψ", omega: "ω", xi: "ξ", zeta: "ζ",
  sin: "sin", cos: "cos", exp: "exp", ln: "ln", log: "log", det: "det", max: "max", min: "min", lim: "lim",
};

const inSigns = (tex) =>
  tex
    .replace(/\\[td]?frac\{([^{}]*)\}\{([^{}]*)\}/g, "$1/$2")
    .replace(/\\([a-zA-Z]+)/g, (_, name) => SIGNS[name] ?? "")
    .replace(/\\./g, " ")
    .replace(/[{}&]|\^(?=ᵀ)/g, "");

document.addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined") return;
  const text = Search.htmlToText;
  Search.htmlToText = (...page) => text(...page).replace(/\\[([]([^]*?)\\[)\]]/g, (_, tex) => inSigns(tex));
});
