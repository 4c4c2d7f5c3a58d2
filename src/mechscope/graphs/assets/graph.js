// An attribution graph to explore. Reads one data attribute and writes text nodes only, so nothing that a model
// wrote can become markup. Running it twice is harmless.
(() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const ROW = 64, LEFT = 74, TOP = 22, BELOW = 44, STEP = 17, MOST_DRAWN = 500, MOST_FOCUSED = 160, LISTED = 18, LINE = 34;

  const number = (value) => {
    if (value === null || value === undefined) return "–";
    const text = Math.abs(value) >= 1000 ? value.toFixed(0) : value.toPrecision(3);
    return text.replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "").replace("-", "−");
  };
  const clipped = (text, most) => ([...text].length > most ? `${[...text].slice(0, most - 1).join("")}…` : text);
  const percent = (value) => `${(100 * value).toFixed(Math.abs(value) < 0.1 ? 1 : 0)}%`.replace("-", "−");

  function make(name, attributes = {}, ...children) {
    const node = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }

  // Circle, diamond, square, hexagon: a kind is told by shape as well as by colour.
  function shape(kind, r) {
    if (kind === "error") return `M0 ${-r * 1.2}L${r * 1.2} 0L0 ${r * 1.2}L${-r * 1.2} 0z`;
    if (kind === "token") return `M${-r} ${-r}h${2 * r}v${2 * r}h${-2 * r}z`;
    if (kind === "logit") return `M${-r} 0L${-r / 2} ${-r}H${r / 2}L${r} 0L${r / 2} ${r}H${-r / 2}z`;
    return `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`;
  }

  class View {
    constructor(root) {
      this.root = root;
      this.data = JSON.parse(root.dataset.graph);
      const { data } = this;
      this.n = data.name.length;
      this.kindOf = data.kind.map((index) => data.kinds[index]);
      this.inputs = Array.from({ length: this.n }, () => []);
      this.outputs = Array.from({ length: this.n }, () => []);
      data.source.forEach((source, edge) => {
        this.inputs[data.target[edge]].push(edge);
        this.outputs[source].push(edge);
      });
      const bySize = (a, b) => Math.abs(this.part(b)) - Math.abs(this.part(a));
      this.inputs.forEach((edges) => edges.sort(bySize));
      this.outputs.forEach((edges) => edges.sort(bySize));
      this.groups = data.groups.map((group) => ({ label: group.label, members: [...group.members] }));
      this.pinned = new Set();
      this.looked = null;
      this.pointed = null;
      this.limit = 1;
      this.query = "";
      this.build();
      this.layOut();
      const logits = this.kindOf.map((kind, node) => [kind, node]).filter(([kind]) => kind === "logit").map(([, node]) => node);
      if (logits.length) this.looked = logits.reduce((best, node) => (this.data.weight[node] > this.data.weight[best] ? node : best));
      this.refresh();
      this.scroll.scrollLeft = this.scroll.scrollWidth;
    }

    part(edge) { return this.data.effect[edge] / Math.max(this.data.inputs[this.data.target[edge]], 1e-10); }
    title(node) { return this.data.label[node] || this.data.text[node]; }
    short(node) {
      const [site, rest] = this.data.name[node].split("/"), kind = this.kindOf[node], token = this.data.tokens[this.data.position[node]];
      const what = this.data.label[node] || (kind === "latent" ? `${site} #${rest.split("@")[0]}` : kind === "error" ? this.data.name[node].split("@")[0] : this.data.text[node]);
      return kind === "token" || kind === "logit" ? what : `${what} at ${token}`;
    }
    isEnd(node) { return this.kindOf[node] === "token" || this.kindOf[node] === "logit"; }
    isLogits(layer) { return this.kindOf[this.data.layer.indexOf(layer)] === "logit"; }
    isShown(node) { return this.isEnd(node) || this.data.share[node] <= this.limit || this.pinned.has(node) || this.groupOf(node) !== undefined; }
    groupOf(node) { return this.groups.find((group) => group.members.includes(node)); }

    build() {
      const slider = make("input", { type: "range", min: 5, max: 100, value: 100, "aria-label": "share of influence shown" });
      slider.addEventListener("input", () => { this.limit = slider.value >= 100 ? Infinity : slider.value / 100; this.layOut(); this.refresh(); });
      this.limit = Infinity;
      this.count = make("output");
      const search = make("input", { type: "search", placeholder: "search nodes", "aria-label": "search nodes" });
      search.addEventListener("input", () => { this.query = search.value.trim().toLowerCase(); this.refresh(); });
      search.addEventListener("keydown", (event) => {
        const first = this.found()[0];
        if (event.key === "Enter" && first !== undefined) this.look(first);
      });
      const clear = make("button", { type: "button" }, "unpin all");
      clear.addEventListener("click", () => { this.pinned.clear(); this.groups = []; this.looked = null; this.layOut(); this.refresh(); });
      const keys = ["latent", "error", "token", "logit"].map((kind) => make("span", {}, this.key(kind), kind));
      const effects = [["plus", "raises"], ["minus", "lowers"]].map(([sign, word]) => make("span", {},
        make("svg:svg", { width: 18, height: 10 }, make("svg:path", { class: `msg-edge msg-edge-${sign}`, d: "M0 5H18", "stroke-width": 2.4 })), word));
      this.bar = make("div", { class: "msg-bar" }, make("label", {}, "show", slider), this.count, search, clear,
        make("div", { class: "msg-key" }, ...keys, ...effects));
      this.scroll = make("div", { class: "msg-scroll" });
      this.details = make("aside", { class: "msg-details", "aria-live": "polite" });
      this.below = make("section", { class: "msg-below" });
      this.root.append(this.bar, make("div", { class: "msg-columns" }, this.scroll, this.details), this.below);
      new ResizeObserver(() => { if (Math.abs(this.scroll.clientWidth - this.wide) > 20) { this.layOut(); this.refresh(); } }).observe(this.scroll);
    }

    key(kind) {
      return make("svg:svg", { width: 12, height: 12 }, make("svg:g", { class: `msg-node msg-${kind}`, transform: "translate(6 6)" },
        make("svg:path", { d: shape(kind, 4.6) })));
    }

    // Each position is as wide as its fullest layer needs; each layer as high as its fullest cell. Logits stand side by
    // side, the strongest above its position and the others to the left of it, so that every name can be read.
    layOut() {
      const { data } = this, top = Math.max(...data.layer), cells = new Map();
      this.wide = this.scroll.clientWidth || 900;
      for (let node = 0; node < this.n; node++) {
        if (!this.isShown(node)) continue;
        const name = `${data.position[node]},${data.layer[node]}`;
        if (!cells.has(name)) cells.set(name, []);
        cells.get(name).push(node);
      }
      const used = [...new Set(data.layer.filter((_, node) => this.isShown(node)))].sort((a, b) => a - b);
      const labels = data.tokens.map((token) => Math.max(30, Math.min([...token].length, 12) * 7.2 + 14));
      const room = this.wide - LEFT - 34, total = (widths) => widths.reduce((a, b) => a + b, 0);
      const widths = (flat) => data.tokens.map((_, position) => {
        const most = Math.max(1, ...used.filter((layer) => !this.isLogits(layer)).map((layer) => (cells.get(`${position},${layer}`) || []).length));
        return Math.max(Math.ceil(Math.sqrt(most * flat)) * STEP + 16, labels[position]);
      });
      // Cells are wider than high where there is room, higher than wide where there is not.
      const need = [1.8, 1.2, 0.8, 0.5, 0.3].map(widths).find((found) => total(found) <= room) || widths(0.3);
      const stretch = Math.max(1, room / total(need));
      this.slot = 14 + 6.2 * Math.max(4, ...this.kindOf.map((kind, node) => (kind === "logit" ? [...this.logitName(node)].length : 0)));
      this.columns = [];
      let x = LEFT;
      need.forEach((width) => { this.columns.push([x, width * stretch]); x += width * stretch; });
      this.width = x + 14;
      this.rows = new Map();
      let y = TOP;
      [...used].reverse().forEach((layer) => {
        const lines = Math.max(1, ...data.tokens.map((_, position) => {
          const count = (cells.get(`${position},${layer}`) || []).length;
          return count ? Math.ceil(count / this.across(position, layer)) : 1;
        }));
        const height = this.isLogits(layer) ? lines * LINE + 18 : Math.max(layer === -1 || layer === top ? 44 : ROW, lines * STEP + 26);
        this.rows.set(layer, [y, height]);
        y += height;
      });
      this.height = y + BELOW;
      this.place = new Map();
      cells.forEach((nodes, name) => {
        const [position, layer] = name.split(",").map(Number);
        const [left, width] = this.columns[position], [above, height] = this.rows.get(layer);
        if (this.isLogits(layer)) {
          const across = this.across(position, layer);
          nodes.sort((a, b) => data.weight[b] - data.weight[a]).forEach((node, i) =>
            this.place.set(node, [this.firstLogit(position) - (i % across) * this.slot, above + 28 + Math.floor(i / across) * LINE]));
          return;
        }
        const across = Math.min(nodes.length, this.across(position, layer)), lines = Math.ceil(nodes.length / across);
        nodes.sort((a, b) => data.influence[b] - data.influence[a]).forEach((node, i) => {
          const line = Math.floor(i / across), inLine = Math.min(across, nodes.length - line * across);
          this.place.set(node, [
            left + width / 2 + (i % across - (inLine - 1) / 2) * Math.min(STEP * 1.5, (width - 12) / inLine),
            above + height / 2 + (line - (lines - 1) / 2) * STEP,
          ]);
        });
      });
      this.draw();
    }

    across(position, layer) {
      return Math.max(1, Math.floor(this.isLogits(layer) ? (this.firstLogit(position) - LEFT) / this.slot + 0.5 : (this.columns[position][1] - 12) / STEP));
    }

    firstLogit(position) {
      const [left, width] = this.columns[position];
      return Math.min(left + width / 2, this.width - this.slot / 2);
    }

    logitName(node) { return `${clipped(this.title(node), 16)} ${percent(this.data.weight[node])}`; }

    draw() {
      const { data } = this, most = Math.max(...data.influence.filter((_, i) => !this.isEnd(i)), 1e-12);
      const svg = make("svg:svg", { width: this.width, height: this.height, role: "group", "aria-label": "attribution graph" });
      this.rows.forEach(([y, height], layer) => {
        const name = layer === -1 ? "tokens" : this.isLogits(layer) ? "logits" : `layer ${layer}`;
        svg.append(make("svg:line", { class: "msg-stripe", x1: LEFT - 8, x2: this.width, y1: y + height, y2: y + height }));
        svg.append(make("svg:text", { class: "msg-layer-name", x: LEFT - 16, y: y + height / 2 + 4 }, name));
      });
      this.columns.forEach(([x, width], i) => {
        if (i % 2) svg.prepend(make("svg:rect", { class: "msg-lane", x, y: 0, width, height: this.height }));
        svg.append(make("svg:text", { class: "msg-token-name", x: x + width / 2, y: this.height - 18 }, clipped(data.tokens[i], 12)));
      });
      svg.addEventListener("click", (event) => { if (!event.target.closest(".msg-node")) { this.looked = null; this.refresh(); } });
      this.edgeLayer = make("svg:g");
      svg.append(this.edgeLayer);
      this.marks = new Map();
      this.place.forEach(([x, y], node) => {
        const kind = this.kindOf[node], r = this.isEnd(node) ? 6.5 : 3.2 + 4.3 * Math.sqrt(data.influence[node] / most);
        const mark = make("svg:g", { class: `msg-node msg-${kind}`, transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`, tabindex: 0, role: "button", "aria-label": `${data.name[node]}: ${this.title(node)}` },
          make("svg:path", { d: shape(kind, r) }));
        if (kind === "logit") mark.append(make("svg:text", { y: -11 }, this.logitName(node)));
        mark.addEventListener("pointerenter", () => { this.pointed = node; this.refresh(false); });
        mark.addEventListener("pointerleave", () => { this.pointed = null; this.refresh(false); });
        mark.addEventListener("click", (event) => this.click(node, event.shiftKey));
        mark.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); this.click(node, event.shiftKey); } });
        this.marks.set(node, mark);
        svg.append(mark);
      });
      this.scroll.replaceChildren(svg);
    }

    click(node, alsoPin) {
      if (alsoPin || this.looked === node) {
        if (this.pinned.has(node)) this.pinned.delete(node); else this.pinned.add(node);
      }
      this.look(node);
    }

    look(node) {
      this.looked = node;
      if (!this.place.has(node)) { this.pinned.add(node); this.layOut(); }
      this.refresh();
      const mark = this.marks.get(node), [x] = this.place.get(node);
      if (x < this.scroll.scrollLeft || x > this.scroll.scrollLeft + this.scroll.clientWidth) mark.scrollIntoView({ inline: "center", block: "nearest" });
    }

    found() {
      if (!this.query) return [];
      return [...Array(this.n).keys()].filter((node) => `${this.data.name[node]} ${this.data.text[node]} ${this.data.label[node]}`.toLowerCase().includes(this.query));
    }

    curve(source, target) {
      const [x1, y1] = this.place.get(source), [x2, y2] = this.place.get(target), bend = Math.max(18, (y1 - y2) * 0.42);
      return `M${x1.toFixed(1)} ${y1.toFixed(1)}C${x1.toFixed(1)} ${(y1 - bend).toFixed(1)} ${x2.toFixed(1)} ${(y2 + bend).toFixed(1)} ${x2.toFixed(1)} ${y2.toFixed(1)}`;
    }

    drawEdges() {
      const { data } = this, focus = this.pointed ?? this.looked, lines = [];
      const width = (edge) => (0.5 + 5 * Math.sqrt(Math.abs(this.part(edge)))).toFixed(2);
      const both = (edge) => this.place.has(data.source[edge]) && this.place.has(data.target[edge]);
      if (focus === null || focus === undefined) {
        for (let edge = 0, drawn = 0; edge < data.source.length && drawn < MOST_DRAWN; edge++) {
          if (!both(edge)) continue;
          drawn++;
          lines.push(make("svg:path", { class: "msg-edge", d: this.curve(data.source[edge], data.target[edge]), "stroke-width": width(edge) }));
        }
      } else {
        for (const edge of [...this.inputs[focus].slice(0, MOST_FOCUSED), ...this.outputs[focus].slice(0, MOST_FOCUSED)]) {
          if (!both(edge)) continue;
          const sign = data.effect[edge] > 0 ? "plus" : "minus";
          lines.push(make("svg:path", { class: `msg-edge msg-edge-${sign}`, d: this.curve(data.source[edge], data.target[edge]), "stroke-width": width(edge) }));
        }
        lines.reverse();
      }
      this.edgeLayer.replaceChildren(...lines);
    }

    refresh(all = true) {
      const { data } = this, focus = this.pointed ?? this.looked, found = new Set(this.found());
      this.drawEdges();
      const near = new Set();
      if (focus !== null && focus !== undefined) {
        near.add(focus);
        this.inputs[focus].slice(0, MOST_FOCUSED).forEach((edge) => near.add(data.source[edge]));
        this.outputs[focus].slice(0, MOST_FOCUSED).forEach((edge) => near.add(data.target[edge]));
      }
      this.marks.forEach((mark, node) => {
        mark.classList.toggle("msg-faint", (near.size > 0 && !near.has(node)) || (found.size > 0 && near.size === 0 && !found.has(node)));
        mark.classList.toggle("msg-linked", near.has(node) && node !== focus);
        mark.classList.toggle("msg-pinned", this.pinned.has(node) || node === this.looked);
        mark.classList.toggle("msg-grouped", this.groupOf(node) !== undefined);
        mark.classList.toggle("msg-found", found.has(node));
      });
      this.describe(focus);
      if (!all) return;
      const inner = [...this.place.keys()].filter((node) => !this.isEnd(node)).length;
      const share = this.limit === Infinity ? "all influence" : `${Math.round(this.limit * 100)}% of influence`;
      this.count.textContent = `${share}: ${inner} of ${this.kindOf.filter((kind) => kind === "latent" || kind === "error").length} inner nodes${this.query ? `, ${found.size} found` : ""}`;
      this.drawBelow();
    }

    describe(node) {
      const { data } = this;
      if (node === null || node === undefined) {
        this.details.replaceChildren(make("h4", {}, "Point at a node, or click one"),
          make("p", { class: "msg-facts" }, "A click on the ground comes back here. A click on a node shows what it reads and what reads it; a second click, or shift and click, pins it below. Widths are shares of a node's inputs."),
          make("h5", {}, "Most influential"),
          this.list([...Array(this.n).keys()].filter((i) => !this.isEnd(i)).sort((a, b) => data.influence[b] - data.influence[a]).slice(0, LISTED)
            .map((i) => [i, data.influence[i] / Math.max(...data.influence.filter((_, j) => !this.isEnd(j)), 1e-12), number(data.influence[i])])));
        return;
      }
      const kind = this.kindOf[node], facts = [];
      if (kind === "latent") facts.push(`activation ${number(data.activation[node])}`);
      if (kind === "logit") facts.push(`weight ${percent(data.weight[node])}`);
      else facts.push(`influence ${number(data.influence[node])}`, `within the first ${percent(data.share[node])}`);
      facts.push(`position ${data.position[node]} (${data.tokens[data.position[node]]})`);
      const group = this.groupOf(node), pin = make("button", { type: "button" }, this.pinned.has(node) ? "unpin" : "pin");
      pin.addEventListener("click", () => { if (this.pinned.has(node)) this.pinned.delete(node); else this.pinned.add(node); this.refresh(); });
      const edges = (list, end) => this.list(list.slice(0, LISTED).map((edge) => [data[end][edge], this.part(edge), percent(this.part(edge))]));
      this.details.replaceChildren(make("h4", {}, this.title(node)), make("div", { class: "msg-name" }, data.name[node]),
        make("p", { class: "msg-facts" }, `${facts.join(", ")}${group ? `; in “${group.label}”` : ""}`), pin,
        ...(this.inputs[node].length ? [make("h5", {}, `Inputs (${this.inputs[node].length})`), edges(this.inputs[node], "source")] : []),
        ...(this.outputs[node].length ? [make("h5", {}, `Outputs (${this.outputs[node].length}), as shares of the targets' inputs`), edges(this.outputs[node], "target")] : []));
    }

    list(items) {
      const most = Math.max(...items.map(([, part]) => Math.abs(part)), 1e-12);
      const rows = items.map(([node, part, text]) => {
        const meter = make("span", { class: "msg-meter" }, make("i", { class: part >= 0 ? "msg-up" : "msg-down", style: `width:${(100 * Math.abs(part) / most).toFixed(1)}%` }));
        const row = make("li", {}, make("span", { class: "msg-what", title: this.data.name[node] }, this.short(node)), meter, make("span", { class: "msg-size" }, text));
        row.addEventListener("click", () => this.look(node));
        return row;
      });
      return make("ul", { class: "msg-list" }, ...rows);
    }

    drawBelow() {
      const boxes = [...this.groups.map((group) => ({ label: group.label, members: group.members, group }))];
      const grouped = new Set(this.groups.flatMap((group) => group.members));
      const single = [...this.pinned].filter((node) => !grouped.has(node)).sort((a, b) => a - b);
      single.forEach((node) => boxes.push({ label: this.title(node), members: [node] }));
      if (!boxes.length) { this.below.replaceChildren(); return; }
      const name = make("input", { type: "text", placeholder: "name of the group", "aria-label": "name of the group", maxlength: 60 });
      const join = make("button", { type: "button" }, `group the ${single.length} pinned nodes`);
      join.disabled = single.filter((node) => !this.isEnd(node)).length < 2;
      join.addEventListener("click", () => {
        const members = single.filter((node) => !this.isEnd(node));
        this.groups.push({ label: name.value.trim() || `group ${this.groups.length + 1}`, members });
        this.refresh();
      });
      const copy = make("button", { type: "button" }, "copy groups");
      copy.disabled = !this.groups.length;
      copy.addEventListener("click", async () => {
        const named = Object.fromEntries(this.groups.map((group) => [group.label, group.members.map((node) => this.data.name[node])]));
        await navigator.clipboard.writeText(JSON.stringify(named, null, 1));
        copy.textContent = "copied";
        setTimeout(() => { copy.textContent = "copy groups"; }, 1200);
      });
      const chips = this.groups.map((group) => {
        const label = make("span", { title: group.members.map((node) => this.data.name[node]).join("\n") }, `${group.label} (${group.members.length})`);
        label.addEventListener("click", () => this.look(group.members[0]));
        const drop = make("button", { type: "button", "aria-label": `dissolve ${group.label}` }, "×");
        drop.addEventListener("click", () => { this.groups = this.groups.filter((other) => other !== group); this.refresh(); });
        return make("div", { class: "msg-chip" }, label, drop);
      });
      this.below.replaceChildren(make("h4", {}, "Pinned nodes and groups"), make("div", { class: "msg-group" }, name, join, copy, ...chips), this.subgraph(boxes));
    }

    // Boxes by mean position and layer; an arrow is the sum of the direct effects, as a share of the target's inputs.
    subgraph(boxes) {
      const { data } = this, mean = (list) => list.reduce((a, b) => a + b, 0) / list.length;
      boxes.forEach((box) => { box.layer = Math.round(mean(box.members.map((node) => data.layer[node]))); box.at = mean(box.members.map((node) => data.position[node])); });
      const layers = [...new Set(boxes.map((box) => box.layer))].sort((a, b) => b - a), W = 158, H = 38, GAP = 62;
      const rows = layers.map((layer) => boxes.filter((box) => box.layer === layer).sort((a, b) => a.at - b.at));
      const width = Math.max(560, ...rows.map((row) => row.length * (W + 22) + 20));
      rows.forEach((row, r) => row.forEach((box, i) => { box.x = width / 2 + (i - (row.length - 1) / 2) * (W + 22); box.y = 26 + r * (H + GAP); }));
      const owner = new Map(boxes.flatMap((box) => box.members.map((node) => [node, box]))), sums = new Map();
      data.source.forEach((source, edge) => {
        const a = owner.get(source), b = owner.get(data.target[edge]);
        if (a && b && a !== b) { const key = boxes.indexOf(a) * boxes.length + boxes.indexOf(b); sums.set(key, (sums.get(key) || 0) + data.effect[edge]); }
      });
      const svg = make("svg:svg", { width, height: rows.length * (H + GAP), role: "img", "aria-label": "pinned nodes and groups" });
      const arrows = [...sums].map(([key, sum]) => {
        const a = boxes[Math.floor(key / boxes.length)], b = boxes[key % boxes.length];
        return [a, b, sum / Math.max(b.members.reduce((total, node) => total + data.inputs[node], 0), 1e-10)];
      }).sort((x, y) => Math.abs(y[2]) - Math.abs(x[2])).slice(0, 60);
      arrows.forEach(([a, b, part], i) => {
        const level = a.layer === b.layer, y1 = level ? a.y : a.y - H / 2, y2 = level ? b.y : b.y + H / 2;
        svg.append(make("svg:path", { class: `msg-edge msg-edge-${part > 0 ? "plus" : "minus"}`, "stroke-width": (0.8 + 7 * Math.sqrt(Math.abs(part))).toFixed(1), d: `M${a.x} ${y1}C${a.x} ${y1 - 30} ${b.x} ${y2 + 30} ${b.x} ${y2}` }));
        if (i < 24) svg.append(make("svg:text", { class: "msg-box-size", x: a.x + (b.x - a.x) * 0.36, y: y1 + (y2 - y1) * 0.36 }, percent(part)));
      });
      boxes.forEach((box) => {
        const small = box.members.length > 1 ? `${box.members.length} nodes` : data.name[box.members[0]];
        svg.append(make("svg:g", { class: `msg-box${box.group ? " msg-many" : ""}`, transform: `translate(${box.x} ${box.y})` },
          make("svg:rect", { x: -W / 2, y: -H / 2, width: W, height: H, rx: 6 }),
          make("svg:text", { y: -2 }, clipped(box.label, 24)),
          make("svg:text", { class: "msg-small", y: 12 }, clipped(small, 28))));
      });
      return make("div", { class: "msg-scroll" }, svg);
    }
  }

  document.querySelectorAll(".msg-root").forEach((root) => {
    if (root.dataset.ready) return;
    root.dataset.ready = "yes";
    new View(root);
  });
})();
