// Pointing at figures, in report, notebook and web app. Reads data attributes, writes text nodes only,
// so nothing that a model wrote can become markup. Running it twice is harmless.
(() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";

  const number = (value) => {
    if (value === null) return "missing";
    const digits = Math.abs(value) >= 1000 ? value.toFixed(0) : value.toPrecision(Math.abs(value) < 0.001 ? 2 : 3);
    return digits.replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "").replace("-", "−");
  };

  function tipFor(root) {
    const tip = document.createElement("div");
    tip.className = "ms-tip";
    tip.hidden = true;
    root.appendChild(tip);
    return {
      show(event, value, rest) {
        tip.textContent = "";
        const strong = document.createElement("b");
        strong.textContent = value;
        tip.append(strong, rest ? `\n${rest}` : "");
        tip.hidden = false;
        const box = tip.getBoundingClientRect();
        const x = Math.min(event.clientX + 14, innerWidth - box.width - 8);
        const y = event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 10 : event.clientY + 18;
        tip.style.left = `${Math.max(4, x)}px`;
        tip.style.top = `${Math.max(4, y)}px`;
      },
      hide() { tip.hidden = true; },
    };
  }

  function outline(grid, row, column) {
    const { data } = grid;
    const [w, h] = data.cell;
    const width = w * data.columns.length, height = h * data.rows.length;
    const bars = [[0, row * h, width, h]];
    if (column !== null) bars.push([column * w, 0, w, height]);
    grid.cross.setAttribute("d", bars.map(([x, y, a, b]) => `M${x} ${y}h${a}v${b}h${-a}z`).join(""));
  }

  function mountGrid(node, tip) {
    const grid = { node, data: JSON.parse(node.dataset.grid), cross: document.createElementNS(SVG, "path") };
    const { data } = grid;
    grid.cross.setAttribute("class", "ms-cross");
    node.appendChild(grid.cross);
    grid.value = (row, column) => {
      const whole = data.values[row * data.columns.length + column];
      return whole === null ? null : whole * data.step;
    };
    grid.clear = () => grid.cross.removeAttribute("d");
    grid.pointed = () => {};
    const catcher = node.querySelector(".ms-catch");
    catcher.addEventListener("pointermove", (event) => {
      const box = catcher.getBoundingClientRect();
      const clamp = (x, n) => Math.max(0, Math.min(n - 1, Math.floor(x * n)));
      const row = clamp((event.clientY - box.top) / box.height, data.rows.length);
      const column = clamp((event.clientX - box.left) / box.width, data.columns.length);
      const place = `${data.rowName}  ${data.rows[row]}\n${data.columnName}  ${data.columns[column]}`;
      tip.show(event, `${number(grid.value(row, column))} ${data.unit}`, place);
      outline(grid, row, column);
      grid.pointed(row, column);
    });
    catcher.addEventListener("pointerleave", () => { tip.hide(); grid.clear(); grid.pointed(null); });
    return grid;
  }

  // All heads of a view show the same row; the tokens above are shaded by the head that is pointed at.
  function mountAttention(view, grids, tip) {
    const own = grids.filter((grid) => view.contains(grid.node));
    const tokens = [...view.querySelectorAll(".ms-tokens .ms-token")];
    const shade = (row, grid) => tokens.forEach((token, key) => {
      const weight = row === null || !grid ? 0 : Math.max(0, grid.value(row, key) ?? 0);
      token.style.setProperty("--strength", `${Math.round(weight * 100)}%`);
      token.classList.toggle("ms-up", weight > 0.005);
      token.classList.toggle("ms-strong", weight > 0.62);
      token.classList.toggle("ms-chosen", key === row);
    });
    const point = (row, column, grid) => {
      own.forEach((other) => (row === null ? other.clear() : outline(other, row, other === grid ? column : null)));
      shade(row, grid);
    };
    own.forEach((grid) => { grid.pointed = (row, column = null) => point(row, column, grid); });
    const mean = { value: (row, key) => own.reduce((sum, grid) => sum + (grid.value(row, key) ?? 0), 0) / own.length };
    tokens.forEach((token, row) => {
      token.addEventListener("pointerenter", (event) => {
        point(row, null, mean);
        tip.show(event, token.textContent, "shade: mean over the heads below");
      });
      token.addEventListener("pointerleave", () => { point(null, null, null); tip.hide(); });
    });
  }

  // Pointing at a node lights up its edges, a click pins it, and the slider hides weak edges.
  function mountCircuit(view) {
    const nodes = [...view.querySelectorAll("[data-node]")], edges = [...view.querySelectorAll(".ms-edge")];
    let pinned = null;
    const light = (name) => {
      view.classList.toggle("ms-chosen-one", name !== null);
      const near = new Set([name]);
      edges.forEach((edge) => {
        const ends = [edge.dataset.source, edge.dataset.target], lit = name !== null && ends.includes(name);
        edge.classList.toggle("ms-lit", lit);
        if (lit && !edge.classList.contains("ms-weak")) ends.forEach((end) => near.add(end));
      });
      nodes.forEach((node) => node.classList.toggle("ms-lit", name !== null && near.has(node.dataset.node)));
    };
    const pin = (node) => {
      pinned = pinned === node.dataset.node ? null : node.dataset.node;
      nodes.forEach((other) => other.classList.toggle("ms-pinned", other.dataset.node === pinned));
      light(pinned);
    };
    nodes.forEach((node) => {
      node.addEventListener("pointerenter", () => light(node.dataset.node));
      node.addEventListener("pointerleave", () => light(pinned));
      node.addEventListener("click", () => pin(node));
      node.addEventListener("keydown", (event) => { if (event.key === "Enter") pin(node); });
    });
    const slider = view.querySelector("input[type=range]");
    if (!slider) return;
    const sizes = JSON.parse(slider.dataset.sizes);
    slider.addEventListener("input", () => {
      const least = sizes[slider.value - 1];
      edges.forEach((edge) => edge.classList.toggle("ms-weak", Number(edge.dataset.size) < least));
      const n = edges.filter((edge) => !edge.classList.contains("ms-weak")).length;
      view.querySelector("output").textContent = `${n} edge${n === 1 ? "" : "s"}`;
      light(pinned);
    });
  }

  function mount(root) {
    if (root.dataset.msReady) return;
    root.dataset.msReady = "yes";
    const tip = tipFor(root);
    const grids = [...root.querySelectorAll("[data-grid]")].map((node) => mountGrid(node, tip));
    root.querySelectorAll(".ms-circuit").forEach(mountCircuit);
    root.querySelectorAll(".ms-attention").forEach((view) => mountAttention(view, grids, tip));
    root.querySelectorAll("[data-tip]").forEach((node) => {
      node.addEventListener("pointermove", (event) => tip.show(event, node.dataset.tip, ""));
      node.addEventListener("pointerleave", () => tip.hide());
    });
    root.querySelectorAll(".ms-copy").forEach((button) => button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.parentElement.querySelector("pre").textContent);
      button.textContent = "copied";
      setTimeout(() => { button.textContent = "copy"; }, 1200);
    }));
  }

  document.querySelectorAll(".ms").forEach(mount);
})();
