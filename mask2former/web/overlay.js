// Shows which region is pointed at. Runs once for the page, with the element that every result is written into.
const setActive = (region) => {
    for (const part of element.querySelectorAll("[data-region]")) {
        part.classList.toggle("m2f-active", part.dataset.region === region);
    }
};

const hideTip = () => {
    setActive(null);
    element.querySelector(".m2f-tip")?.classList.remove("m2f-shown");
};

// x and y in pixels from the upper left corner of the picture.
const showTip = (path, x, y) => {
    const stage = element.querySelector(".m2f-stage");
    const tip = element.querySelector(".m2f-tip");
    setActive(path.dataset.region);
    tip.textContent = path.getAttribute("aria-label");
    tip.classList.add("m2f-shown");
    const left = Math.min(Math.max(x - tip.offsetWidth / 2, 2), stage.clientWidth - tip.offsetWidth - 2);
    const above = y - tip.offsetHeight - 14;
    tip.style.left = `${left}px`;
    tip.style.top = `${above < 2 ? y + 18 : above}px`;
};

const showTipOf = (path) => {
    const stage = element.querySelector(".m2f-stage").getBoundingClientRect();
    const box = path.getBoundingClientRect();
    showTip(path, box.left + box.width / 2 - stage.left, box.top + box.height / 2 - stage.top);
};

const atPointer = (event) => {
    const path = event.target.closest("path[data-region]");
    const row = event.target.closest("tr[data-region]");
    if (path) {
        const stage = element.querySelector(".m2f-stage").getBoundingClientRect();
        showTip(path, event.clientX - stage.left, event.clientY - stage.top);
    } else if (row) {
        showTipOf(element.querySelector(`path[data-region="${row.dataset.region}"]`));
    } else {
        hideTip();
    }
};

element.addEventListener("pointermove", atPointer);
element.addEventListener("pointerdown", atPointer);
// A finger that is lifted leaves, too, but what it tapped stays marked.
element.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hideTip());
element.addEventListener("focusin", (event) => {
    if (event.target.matches("path[data-region]:focus-visible")) {
        showTipOf(event.target);
    }
});
element.addEventListener("focusout", hideTip);
watch("value", hideTip);
