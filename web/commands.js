// The commands of the canvas by name: what the menu shows, and their keys.

const PREFIX = "LoraWorkbench";

export const MENU = ["Extensions", "LoRA Workbench"];

export const COMMANDS = {
  AddLoras: { label: "Add LoRAs to the selected node", icon: "pi pi-plus", keys: { key: "l" } },
  ToggleAll: {
    label: "Turn all LoRAs of the selected node on or off",
    icon: "pi pi-check-square",
    keys: { key: "L", shift: true },
  },
  ShowDetails: {
    label: "Show what a LoRA of the selected node is",
    icon: "pi pi-info-circle",
    keys: { key: "I", shift: true },
  },
  Recheck: {
    label: "Check all LoRAs against their models anew",
    icon: "pi pi-refresh",
    keys: { key: "R", shift: true },
  },
  FindFiles: { label: "Find missing or renamed LoRA files", icon: "pi pi-link" },
  ConvertLoras: {
    label: "Convert LoRA loaders and stacks to Apply LoRAs",
    icon: "pi pi-sync",
  },
};

export function commandId(name) {
  return `${PREFIX}.${name}`;
}

// The parts of an extension that offer commands: `functions` are by name.
export function offered(functions) {
  const names = Object.keys(functions);
  const bound = names.filter((name) => COMMANDS[name].keys);
  return {
    commands: names.map((name) => {
      const { label, icon } = COMMANDS[name];
      return { id: commandId(name), label, icon, function: functions[name] };
    }),
    keybindings: bound.map((name) => ({ commandId: commandId(name), combo: COMMANDS[name].keys })),
    menuCommands: [{ path: MENU, commands: names.map(commandId) }],
  };
}
