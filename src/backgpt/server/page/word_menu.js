/** What a word offers: everything before it anew, the likeliest other words, one of your own. */

import { byId, button, make } from "./dom.js";

/**
 * @typedef {{text: string, probability: number, edge?: boolean}} Alternative
 * @typedef {object} Offer
 * @property {HTMLElement} anchor the word on the sheet
 * @property {string} word
 * @property {(signal: AbortSignal) => Promise<Alternative[]>} load
 * @property {() => void} rewrite
 * @property {(alternative: Alternative) => void} take
 */

const MARGIN = 8; // pixels between the menu and what is around it

/** @type {Offer | null} */
let offer = null;
let isTabbing = false; // while the key Tab moves the focus
let loading = new AbortController();

/** Make the menu of the page ready. */
export function prepareWordMenu() {
  const menu = byId("menu");
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) menu.hidePopover(); // its word is elsewhere now
    width = innerWidth;
  });
  byId("menu-rewrite").addEventListener("click", () => choose((chosen) => chosen.rewrite()));
  byId("menu-own").addEventListener("submit", (event) => {
    event.preventDefault();
    const field = /** @type {HTMLInputElement} */ (byId("menu-word"));
    const text = field.value.trim();
    if (text) choose((chosen) => chosen.take({ text, probability: 0 }));
    else field.focus();
  });
  menu.addEventListener("keydown", goAlong);
  menu.addEventListener("keydown", noteTab);
  menu.addEventListener("focusout", ({ relatedTarget }) => {
    if (relatedTarget === offer?.anchor) return;
    // The focus goes nowhere when Tab takes it out of the page, but also at a press on the menu.
    const hasLeft = relatedTarget instanceof Node ? !menu.contains(relatedTarget) : isTabbing;
    if (hasLeft) menu.hidePopover();
  });
  menu.addEventListener("beforetoggle", (event) => {
    if (/** @type {ToggleEvent} */ (event).newState !== "closed") return;
    loading.abort(); // the browser gives the focus back to the word
  });
}

/**
 * Open the menu at a word.
 * @param {Offer} opened
 */
export async function openWordMenu(opened) {
  const menu = byId("menu");
  const list = byId("menu-list");
  menu.hidePopover();
  offer = opened;
  loading = new AbortController();
  const { signal } = loading;
  byId("menu-title").textContent = opened.word;
  /** @type {HTMLInputElement} */ (byId("menu-word")).value = "";
  list.replaceChildren(make("li", { class: "wait" }, "looking for the likeliest …"));
  menu.showPopover();
  place(menu, opened.anchor);
  byId("menu-rewrite").focus();
  try {
    const found = await opened.load(signal);
    if (!signal.aborted) list.replaceChildren(...found.map((one) => row(one, found, opened.word)));
  } catch (error) {
    if (signal.aborted) return;
    list.replaceChildren(
      make("li", { class: "wait" }, error instanceof Error ? error.message : ""),
    );
  }
  if (!signal.aborted) place(menu, opened.anchor);
}

/** @param {(chosen: Offer) => void} action */
function choose(action) {
  const chosen = offer;
  byId("menu").hidePopover();
  if (chosen) action(chosen);
}

/**
 * @param {Alternative} alternative
 * @param {Alternative[]} all
 * @param {string} word
 */
function row(alternative, all, word) {
  const { text, probability, edge } = alternative;
  const percent = probability * 100;
  const bar = make("span", { class: "probability", "aria-hidden": "true" });
  bar.style.width = `${(probability / Math.max(...all.map((one) => one.probability))) * 100}%`;
  const shown = edge
    ? make("i", {}, "the text begins here")
    : make("span", { class: "alternative", dir: "auto" }, text.trim());
  const value = make(
    "span",
    { class: "percent" },
    percent < 0.1 ? "< 0.1 %" : `${percent.toFixed(1)} %`,
  );
  const pick = button("", () => choose((chosen) => chosen.take(alternative)));
  pick.append(bar, shown, value);
  if (!edge && text.trim() === word) pick.setAttribute("aria-current", "true");
  return make("li", {}, pick);
}

/** @param {KeyboardEvent} event */
function noteTab({ key, altKey, ctrlKey, metaKey }) {
  isTabbing = key === "Tab" && !altKey && !ctrlKey && !metaKey;
  setTimeout(() => {
    isTabbing = false;
  });
}

/** @param {KeyboardEvent} event */
function goAlong(event) {
  if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
  const stops = [...byId("menu").querySelectorAll("button, input")];
  const here = stops.indexOf(/** @type {Element} */ (document.activeElement));
  const next = stops[here + (event.key === "ArrowDown" ? 1 : -1)];
  if (next instanceof HTMLElement) next.focus();
  event.preventDefault();
}

/**
 * Put the menu under a word, above it, or beside it, wherever there is room. On a phone the style
 * sheet puts it at the bottom of the screen, and the page moves so that the word is seen.
 * @param {HTMLElement} menu
 * @param {HTMLElement} anchor
 */
function place(menu, anchor) {
  const word = anchor.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = menu;
  const { clientWidth } = document.documentElement;
  const most = { x: clientWidth - width - MARGIN, y: innerHeight - height - MARGIN };
  const under = word.bottom + MARGIN;
  const above = word.top - MARGIN - height;
  const beside = word.right + MARGIN > most.x ? word.left - MARGIN - width : word.right + MARGIN;
  const hasRoom = under <= most.y || above >= MARGIN;
  const x = hasRoom ? word.left : beside;
  const y = under <= most.y ? under : hasRoom ? above : word.top - height / 2;
  menu.style.setProperty("--x", `${Math.max(MARGIN, Math.min(x, most.x))}px`);
  menu.style.setProperty("--y", `${Math.max(MARGIN, Math.min(y, most.y))}px`);
  const covered = word.bottom + MARGIN - menu.getBoundingClientRect().top;
  if (width === clientWidth && covered > 0) scrollBy(0, covered);
}
