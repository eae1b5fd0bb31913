/** Where the page begins: the views, their addresses, and what they share. */

import { ApiError, onKeyWanted, request } from "./api.js";
import { Chat } from "./chat.js";
import { byId, showProblem } from "./dom.js";
import { keepFields } from "./draft.js";
import { askForKey } from "./key.js";
import { StoryDesk } from "./story.js";
import { BothWays } from "./surprise.js";
import { prepareWordMenu } from "./word_menu.js";

const VIEWS = ["story", "backchat", "both-ways"];

/** Show the view that the address names. */
function showView() {
  const wanted = location.hash.replace(/^#\//, "");
  const shown = VIEWS.includes(wanted) ? wanted : VIEWS[0];
  for (const view of VIEWS) byId(view).hidden = view !== shown;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === `#/${shown}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const title = byId(shown).querySelector("h1");
  document.title = `${title?.textContent} · backgpt`;
  return title;
}

/** Ask the server for its models and offer them in every view. */
async function offerModels() {
  try {
    const { data } = await request("v1/models");
    for (const view of views) view.offer(data);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    showProblem(error.message);
  }
}

keepFields(byId("main"));
onKeyWanted(askForKey);
prepareWordMenu();
const views = [new StoryDesk(), new Chat(), new BothWays()];
showView();
addEventListener("hashchange", () => {
  showProblem("");
  showView()?.focus();
});
byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  const first = document.querySelector(
    "main > section:not([hidden]) :is(textarea, .word[tabindex])",
  );
  if (first instanceof HTMLElement) first.focus();
});
offerModels();
