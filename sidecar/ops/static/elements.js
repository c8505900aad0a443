/** The page's elements: those that are there, and new ones. */

export const element = (id) => document.getElementById(id);

/** A new element with a class, text and attributes; text is never read as markup. */
export const make = (tag, className, text = "", attributes = {}) => {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
};

/** Keeps a view at its end, however it or its content grows or shrinks, until somebody scrolls away from there. */
export const followTheEnd = (view) => {
  let following = true;
  const follow = () => {
    if (following) view.scrollTop = view.scrollHeight;
  };
  view.addEventListener("scroll", () => {
    following = view.scrollHeight - view.scrollTop - view.clientHeight < 48;
  });
  new ResizeObserver(follow).observe(view);
  new MutationObserver(follow).observe(view, { childList: true, subtree: true, characterData: true });
};
