-- depends: 0050_redraw
-- Nobody becomes a member unasked, an address counts when it is verified, and what is made while its maker is being
-- removed does not outlive them.

-- An address that somebody signed up with is a claim. One of an outside issuer is verified: only such came without a
-- password until now.
set role onbrand_identity;
alter table identity.users
  add column email_verified_at timestamptz,
  add check (email_verified_at is null or email is not null);
update identity.users u set email_verified_at = u.created_at where u.password_hash is null and u.email is not null;

drop function private.me();
create function private.me() returns table (id uuid, email text, email_verified boolean, created_at timestamptz)
language sql stable security definer set search_path = '' as $$
  select u.id, u.email, u.email_verified_at is not null, u.created_at
  from identity.users u where u.id = private.uid()
$$;

create function private.my_verified_email() returns text
language sql stable security definer set search_path = '' as $$
  select u.email from identity.users u where u.id = private.uid() and u.email_verified_at is not null
$$;

-- For our own triggers: nobody else may ask.
create function private.email_of(user_id uuid) returns text
language sql stable security definer set search_path = '' as $$
  select u.email from identity.users u where u.id = email_of.user_id
$$;

-- The account of a subject of an outside issuer, made at its first sight. `email` is an address that the issuer has
-- verified: a new account has it, one that has no address gets it if it is free, and one that claims it is verified.
-- For a new account, an address that has an account already is refused (23505), as before.
create or replace function private.external_user(issuer text, subject text, email text) returns uuid
language plpgsql volatile security definer set search_path = '' as $$
declare who uuid;
begin
  perform private.must_be_asked('external_user', issuer, subject, email);
  select s.user_id into who from identity.subjects s
    where s.issuer = external_user.issuer and s.subject = external_user.subject;
  if who is not null then
    update identity.users u set email = lower(external_user.email), email_verified_at = clock_timestamp()
      where external_user.email is not null and u.id = who and u.email_verified_at is null
        and (u.email = lower(external_user.email) or (u.email is null
          and not exists (select 1 from identity.users o where o.email = lower(external_user.email))));
    return who;
  end if;
  begin
    insert into identity.users as u (email, email_verified_at)
      values (lower(external_user.email), case when external_user.email is not null then clock_timestamp() end)
      returning u.id into who;
    insert into identity.subjects (issuer, subject, user_id)
      values (external_user.issuer, external_user.subject, who);
  exception when unique_violation then
    select s.user_id into who from identity.subjects s
      where s.issuer = external_user.issuer and s.subject = external_user.subject;
    if who is null then raise; end if;
  end;
  return who;
end $$;

-- Whoever links a subject with the account's own address has verified it.
drop function private.link_subject(text, text);
create function private.link_subject(issuer text, subject text, email text default null) returns void
language plpgsql volatile security definer set search_path = '' as $$
begin
  perform private.must_be_asked('link_subject', issuer, subject, email);
  if not private.in_person() then
    raise exception 'no link with this credential' using errcode = '42501';
  end if;
  insert into identity.subjects (issuer, subject, user_id)
    values (link_subject.issuer, link_subject.subject, private.uid());
  update identity.users u set email_verified_at = clock_timestamp()
    where u.id = private.uid() and u.email = lower(link_subject.email) and u.email_verified_at is null;
end $$;

-- Nobody asks any more who has an account.
drop function private.find_user(text, text);

reset role;
grant execute on function private.me(), private.link_subject(text, text, text) to authenticated;
grant execute on function private.my_verified_email(), private.email_of(uuid) to onbrand_definer;

-- Memberships come from three functions: who makes a brand, who accepts an invitation; and leaving is a member's own.
set role onbrand_owner;
drop policy admin_insert on app.brand_users;
drop policy scope_insert on app.brand_users;
revoke insert (brand_id, user_id, role) on app.brand_users from authenticated;

alter table app.invitations
  add column declined boolean not null default false,
  add check (not declined or revoked_at is not null);
call app.keep_no_statistics('app.invitations');
-- For my_invitations, over all brands: not for searches by who may run SQL (see brand_users_by_user).
create index invitations_open_by_email on app.invitations (reverse(email), created_at, id)
  where accepted_at is null and revoked_at is null;
alter index app.invitations_open_by_email alter column 1 set statistics 0;
grant select (declined) on app.invitations to authenticated;
reset role;

-- To lock a row takes the right to update a column of it: this one says nothing of anybody's rights.
grant update (created_at), delete on app.brand_users to onbrand_definer;
grant update (declined) on app.invitations to onbrand_definer;

set role onbrand_definer;

-- Hold somebody's role as admin to the end of the transaction: a removal or a demotion that runs at the same time waits
-- for that end, or this waits for it and refuses (42501).
create function private.must_stay_admin(b text, who uuid) returns void
language plpgsql volatile security definer set search_path = '' as $$
begin
  perform 1 from app.brand_users bu where bu.brand_id = b and bu.user_id = who and bu.role = 'admin' for share;
  if not found then
    raise exception 'no admin of this brand any more' using errcode = '42501';
  end if;
end $$;

-- After, not before: the row policies have looked first, so a stranger locks nothing and learns nothing.
create function private.tg_maker_is_admin() returns trigger
language plpgsql volatile security definer set search_path = '' as $$
begin
  perform private.must_stay_admin(new.brand_id, new.user_id);
  return null;
end $$;

-- The lock that a foreign key would take: the role may change, the membership may not end.
create function private.tg_maker_is_member() returns trigger
language plpgsql volatile security definer set search_path = '' as $$
begin
  perform 1 from app.brand_users bu where bu.brand_id = new.brand_id and bu.user_id = new.user_id for key share;
  if not found then
    raise exception 'no member of this brand any more' using errcode = '42501';
  end if;
  return null;
end $$;

-- Whoever changes or ends another's membership is an admin to the end of the transaction.
create function private.tg_actor_is_admin() returns trigger
language plpgsql volatile security definer set search_path = '' as $$
begin
  if old.user_id is distinct from private.uid() then
    perform private.must_stay_admin(old.brand_id, private.uid());
  end if;
  return null;
end $$;

-- Who leaves a brand leaves no key and no open invitation behind, neither of theirs nor to their address, also for the
-- day when they come back. Who is an admin no more leaves no open invitation behind.
create or replace function private.tg_end_credentials() returns trigger
language plpgsql volatile security definer set search_path = '' as $$
begin
  update app.invitations i set revoked_at = clock_timestamp()
    where i.brand_id = old.brand_id and i.revoked_at is null and i.accepted_at is null
      and (i.user_id = old.user_id or (tg_op = 'DELETE' and i.email = private.email_of(old.user_id)));
  if tg_op = 'DELETE' then
    update app.api_keys k set revoked_at = clock_timestamp()
      where k.brand_id = old.brand_id and k.user_id = old.user_id and k.revoked_at is null;
  end if;
  return null;
end $$;

-- Leave a brand: any member, and the last admin not. The membership is locked before the record, as a removal does.
create function private.leave_brand(b text) returns boolean
language plpgsql volatile security definer set search_path = '' as $$
begin
  if not coalesce(private.acts_in(b), false) or not private.may('manage') then
    raise exception 'no membership to end' using errcode = '42501';
  end if;
  perform pg_catalog.pg_advisory_xact_lock(private.lock_key('members', b));
  perform 1 from app.brand_users bu where bu.brand_id = b and bu.user_id = private.uid() for update;
  perform private.record(b, 'member.remove', jsonb_build_object('user_id', private.uid()));
  delete from app.brand_users bu where bu.brand_id = b and bu.user_id = private.uid();
  return found;
end $$;

-- Open invitations to the caller's verified address, newest first: `most` of them after a place in the list.
create function private.my_invitations(at timestamptz, after uuid, most integer)
returns table (id uuid, brand_id text, role text, created_at timestamptz, expires_at timestamptz)
language plpgsql stable security definer set search_path = '' as $$
declare address text := private.my_verified_email();
begin
  if address is null or not private.in_person() or not private.credential_lives() then return; end if;
  return query select i.id, i.brand_id, i.role, i.created_at, i.expires_at from app.invitations i
    where reverse(i.email) = reverse(address) and i.accepted_at is null and i.revoked_at is null and i.expires_at > statement_timestamp()
      and (my_invitations.at is null or (i.created_at, i.id) < (my_invitations.at, my_invitations.after))
    order by i.created_at desc, i.id desc limit least(most, 101);
end $$;

-- The invitation that the caller may answer: with its secret, the account that claims its address; without, the account
-- whose verified address it is. Whether it is open is looked at when it is answered.
create function private.find_invitation(id uuid, hash text) returns table (brand_id text, user_id uuid, role text)
language plpgsql stable security definer set search_path = '' as $$
declare
  address text := case when hash is null then private.my_verified_email() else private.my_email() end;
begin
  if not private.in_person() or not private.credential_lives() then
    raise exception 'no invitation for this credential' using errcode = '42501';
  end if;
  return query select i.brand_id, i.user_id, i.role from app.invitations i
    where uuid_send(i.id) = uuid_send(find_invitation.id) and i.email = address
      and (find_invitation.hash is null or i.hash = find_invitation.hash);
end $$;

-- Become a member by an invitation: once, in time, while who invited is an admin, to the end of this transaction. The
-- brand; null for every reason why not. Memberships are locked before invitations, as a removal locks them.
create or replace function private.accept_invitation(id uuid, hash text) returns text
language plpgsql volatile security definer set search_path = '' as $$
declare invited record;
begin
  select * into invited from private.find_invitation(accept_invitation.id, accept_invitation.hash);
  if not found then return null; end if;
  perform pg_catalog.pg_advisory_xact_lock(private.lock_key('members', invited.brand_id));
  perform 1 from app.brand_users bu
    where bu.brand_id = invited.brand_id and bu.user_id = invited.user_id and bu.role = 'admin' for share;
  if not found then return null; end if;
  update app.invitations i set accepted_at = clock_timestamp(), accepted_by = private.uid()
    where i.brand_id = invited.brand_id and i.id = accept_invitation.id
      and i.accepted_at is null and i.revoked_at is null and i.expires_at > clock_timestamp();
  if not found then return null; end if;
  insert into app.brand_users (brand_id, user_id, role) values (invited.brand_id, private.uid(), invited.role)
    on conflict do nothing;
  perform private.audit_append(invited.brand_id, 'user', private.uid(), null, 'invitation.accept',
    jsonb_build_object('invitation_id', accept_invitation.id));
  return invited.brand_id;
end $$;

-- End an invitation to the caller. The brand; null for every reason why not.
create function private.decline_invitation(id uuid, hash text) returns text
language plpgsql volatile security definer set search_path = '' as $$
declare invited record;
begin
  select * into invited from private.find_invitation(decline_invitation.id, decline_invitation.hash);
  if not found then return null; end if;
  update app.invitations i set revoked_at = clock_timestamp(), declined = true
    where i.brand_id = invited.brand_id and i.id = decline_invitation.id
      and i.accepted_at is null and i.revoked_at is null and i.expires_at > clock_timestamp();
  if not found then return null; end if;
  perform private.audit_append(invited.brand_id, 'user', private.uid(), null, 'invitation.decline',
    jsonb_build_object('invitation_id', decline_invitation.id));
  return invited.brand_id;
end $$;

reset role;
grant execute on function private.leave_brand(text), private.my_invitations(timestamptz, uuid, integer),
  private.decline_invitation(uuid, text) to authenticated;
grant execute on function private.tg_maker_is_admin(), private.tg_maker_is_member(), private.tg_actor_is_admin()
  to onbrand_owner;

set role onbrand_owner;
create trigger maker_is_admin after insert on app.api_keys
  for each row when (current_user = 'authenticated') execute function private.tg_maker_is_admin();
create trigger maker_is_admin after insert on app.invitations
  for each row when (current_user = 'authenticated') execute function private.tg_maker_is_admin();
create trigger maker_is_member after insert on app.uploads
  for each row when (current_user = 'authenticated') execute function private.tg_maker_is_member();
create trigger maker_is_member after insert on app.lora_training_jobs
  for each row when (current_user = 'authenticated') execute function private.tg_maker_is_member();
create trigger maker_is_member after insert on app.generations
  for each row when (current_user = 'authenticated') execute function private.tg_maker_is_member();
create trigger actor_is_admin after update or delete on app.brand_users
  for each row when (current_user = 'authenticated') execute function private.tg_actor_is_admin();
create trigger end_invitations after update of role on app.brand_users
  for each row when (old.role = 'admin' and new.role <> 'admin') execute function private.tg_end_credentials();
reset role;
