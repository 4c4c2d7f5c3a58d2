// What a visitor of the page does, and what it then shows; NAMES are two nodes. The test reads `said`.
const said = {}, all = (query) => [...document.querySelectorAll(query)], one = (query) => document.querySelector(query);
const marks = () => all("g.msg-node[role=button]"), named = (part) => marks().find((mark) => mark.getAttribute("aria-label").startsWith(part));
const press = (node, more = {}) => node.dispatchEvent(new MouseEvent("click", { bubbles: true, ...more }));
const type = (input, value) => { input.value = value; input.dispatchEvent(new Event("input", { bubbles: true })); };
const boxes = () => all(".msg-box").map((box) => box.querySelector("text").textContent);
const details = () => one(".msg-details").textContent;
window.addEventListener("error", (event) => { (said.errors ??= []).push(event.message); });
const [first, second] = NAMES;

said.drawn = marks().length;
said.looked = one(".msg-details h4").textContent;
const labels = all("g.msg-logit text").map((text) => text.getBoundingClientRect());
said.labels = labels.length;
said.overprinted = labels.filter((a, i) => labels.some((b, j) => j < i && a.left < b.right && b.left < a.right && a.top < b.bottom - 1 && b.top < a.bottom - 1)).length;

press(named(first));
said.lookedAt = one(".msg-details .msg-name").textContent;
said.edges = all(".msg-edge-plus, .msg-edge-minus").filter((edge) => edge.closest(".msg-scroll")).length;
named(second).dispatchEvent(new PointerEvent("pointerenter"));
said.pointedAt = one(".msg-details .msg-name").textContent;
named(second).dispatchEvent(new PointerEvent("pointerleave"));
said.back = one(".msg-details .msg-name").textContent;

said.boxesBefore = boxes().length;
press(named(first));
said.pinnedOne = boxes().length;
const group = () => all(".msg-group button").find((button) => button.textContent.startsWith("group"));
said.canGroupOne = !group().disabled;
press(named(second), { shiftKey: true });
said.pinnedTwo = boxes().length;
one(".msg-group input").value = "the pair";
press(group());
said.chips = all(".msg-chip span").map((chip) => chip.textContent);
said.grouped = boxes();
press(one(".msg-chip button"));
said.chipsLeft = all(".msg-chip").length;
press(all(".msg-bar button").find((button) => button.textContent === "unpin all"));
said.boxesAfter = boxes().length;

type(one("input[type=search]"), "MLP_IN.1/");
said.found = all(".msg-found").length;
one("input[type=search]").dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" }));
said.foundFirst = one(".msg-details .msg-name").textContent;
type(one("input[type=search]"), "");
said.foundNone = all(".msg-found").length;

type(one("input[type=range]"), "30");
said.fewer = marks().length;
said.shown = one(".msg-bar output").textContent;
type(one("input[type=range]"), "100");
said.again = marks().length;
document.body.append(Object.assign(document.createElement("pre"), { id: "said", textContent: JSON.stringify(said) }));
